// A libcuda.so.1, and an NVRTC in the same file, for machines without a GPU: device memory is host memory, kernels are not
// run, and every call is logged. `tests/driver.rs` compiles it.
//
// Environment:
//   STAND_IN_LOG      file that every call is appended to, one line each
//   STAND_IN_FAIL     "name n code": the n-th call of `name`, counted from 1, returns `code`; n = 0: every call does
//   STAND_IN_VERSION  what cuDriverGetVersion says, 13000 without
//   STAND_IN_NVRTC    what nvrtcVersion says, in the same form; without, what NVRTC_VERSION was defined as, or 12990
//   STAND_IN_DEVICES  how many devices there are, all alike, 1 without
//   STAND_IN_COMPILE_MS  milliseconds that a compilation takes, 0 without
//   STAND_IN_POOLS    whether the device has memory pools, 1 without
//
// A function is left out with the compiler's option -Dname=absent_name, NVRTC with -DWITHOUT_NVRTC. NVRTC knows the architectures that NVRTC_ARCHS was defined as,
// or 80 and 90.
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int Result;
typedef uint64_t Address;
enum {
    INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE_FUNCTION = 98, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_ISOLATION = 905
};
enum { SHARED_SIZE_BYTES = 1, MAX_DYNAMIC_SHARED_SIZE_BYTES = 8, BLOCK_BYTES = 48 << 10, BLOCK_BYTES_OPTIN = 227 << 10 };

static FILE *log_file;
static char fail_name[64];
static int fail_at = -1, fail_code, fail_seen;

__attribute__((constructor)) static void read_environment(void) {
    const char *log = getenv("STAND_IN_LOG"), *fail = getenv("STAND_IN_FAIL");
    log_file = fopen(log ? log : "/dev/null", "a");
    if (fail) sscanf(fail, "%63s %d %d", fail_name, &fail_at, &fail_code);
}

static int number(const char *variable, int otherwise) {
    const char *chosen = getenv(variable);
    return chosen ? atoi(chosen) : otherwise;
}

// Logs a call, then says what it returns if that was chosen from outside, else 0.
__attribute__((format(printf, 2, 3))) static Result call(const char *name, const char *arguments, ...) {
    flockfile(log_file);
    int chosen = strcmp(name, fail_name) == 0 && (fail_at == 0 || ++fail_seen == fail_at);
    fputs(name, log_file);
    va_list list;
    va_start(list, arguments);
    vfprintf(log_file, arguments, list);
    va_end(list);
    if (chosen) fprintf(log_file, " -> %d", fail_code);
    fputc('\n', log_file);
    fflush(log_file);
    funlockfile(log_file);
    return chosen ? fail_code : 0;
}

#define CALL(...)                                        \
    do {                                                 \
        Result result = call(__func__, " " __VA_ARGS__); \
        if (result) return result;                       \
    } while (0)

// The driver and its devices.

Result cuInit(unsigned flags) { CALL("flags %u", flags); return 0; }

Result cuDriverGetVersion(int *version) { CALL(); *version = number("STAND_IN_VERSION", 13000); return 0; }

Result cuDeviceGet(int *device, int ordinal) {
    CALL("%d", ordinal);
    *device = ordinal;
    return ordinal >= 0 && ordinal < number("STAND_IN_DEVICES", 1) ? 0 : INVALID_DEVICE;
}

Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    CALL("%d of %d", attribute, device);
    switch (attribute) {
    case 16: *value = 132; return 0;               // multiprocessors
    case 36: *value = 3134000; return 0;           // kHz of the memory
    case 37: *value = 6144; return 0;              // bits of its bus
    case 38: *value = 60 << 20; return 0;          // L2 cache
    case 39: *value = 2048; return 0;              // threads of a multiprocessor
    case 75: *value = 9; return 0;                 // compute capability, major
    case 76: *value = 0; return 0;                 // and minor
    case 97: *value = BLOCK_BYTES_OPTIN; return 0; // shared memory that a block can ask for
    case 115: *value = number("STAND_IN_POOLS", 1); return 0;
    default: return INVALID_VALUE;
    }
}

Result cuDeviceGetName(char *name, int bytes, int device) {
    CALL("of %d", device);
    snprintf(name, bytes, "Stand-in H200");
    return 0;
}

// Contexts, streams, events: handles that nobody looks behind. A device's context keeps its handle when it ends and is made
// anew, but not its id.

enum { DEVICES_MAX = 8, STREAMS_MAX = 4096 };
static char contexts[DEVICES_MAX];
static int retained[DEVICES_MAX];
static uint64_t ids[DEVICES_MAX], last_id;
static __thread char *current;

Result cuDevicePrimaryCtxRetain(void **context, int device) {
    CALL("%d", device);
    if (retained[device % DEVICES_MAX]++ == 0) ids[device % DEVICES_MAX] = ++last_id;
    *context = &contexts[device % DEVICES_MAX];
    return 0;
}
Result cuDevicePrimaryCtxRelease_v2(int device) { CALL("%d", device); retained[device % DEVICES_MAX]--; return 0; }
Result cuCtxGetCurrent(void **context) { CALL(); *context = current; return 0; }
Result cuCtxSetCurrent(void *context) { CALL(); current = context; return 0; }
Result cuCtxSynchronize(void) { CALL(); return 0; }
Result cuCtxGetId(char *context, unsigned long long *id) { CALL(); *id = ids[context - contexts]; return 0; }
Result cuCtxGetDevice(int *device) {
    CALL();
    if (current == NULL) return INVALID_CONTEXT;
    *device = (int)(current - contexts);
    return 0;
}

static uintptr_t streams = 100, events = 200;
static char *context_of_stream[STREAMS_MAX];

// That of a stream made here; any other is taken for one of the current context.
static char *context_of(void *stream) {
    char *context = (uintptr_t)stream < STREAMS_MAX ? context_of_stream[(uintptr_t)stream] : NULL;
    return context ? context : current;
}

Result cuStreamCreate(void **stream, unsigned flags) {
    CALL("flags %u", flags);
    *stream = (void *)++streams;
    if (streams < STREAMS_MAX) context_of_stream[streams] = current;
    return 0;
}
Result cuStreamDestroy_v2(void *stream) { CALL("%zu", (size_t)stream); return 0; }
Result cuStreamSynchronize(void *stream) { CALL("%zu", (size_t)stream); return 0; }
Result cuStreamGetCtx(void *stream, void **context) { CALL("%zu", (size_t)stream); *context = context_of(stream); return 0; }

// Captures. A captured stream waits for no event, as if all of them were recorded before. What no graph can hold is refused as
// the modes of the captures and of the calling thread say, and the captures that forbid it are lost.

enum { GLOBAL, THREAD_LOCAL, RELAXED, CAPTURES_MAX = 8 };
static struct capture {
    void *stream; // NULL: none
    int mode, lost;
    pthread_t thread;
} captures[CAPTURES_MAX];
static __thread int thread_mode = GLOBAL;

static struct capture *capture_of(void *stream) {
    for (int i = 0; i < CAPTURES_MAX; i++)
        if (stream && captures[i].stream == stream) return &captures[i];
    return NULL;
}

static Result not_in_a_capture(void) {
    Result result = 0;
    for (struct capture *c = captures; c < captures + CAPTURES_MAX; c++) {
        int own = pthread_equal(c->thread, pthread_self());
        int forbids = own ? c->mode != RELAXED && thread_mode != RELAXED : c->mode == GLOBAL && thread_mode == GLOBAL;
        if (c->stream && forbids) c->lost = 1, result = CAPTURE_UNSUPPORTED;
    }
    return result;
}
#define NOT_IN_A_CAPTURE()                  \
    do {                                    \
        Result result = not_in_a_capture(); \
        if (result) return result;          \
    } while (0)

Result cuThreadExchangeStreamCaptureMode(int *mode) {
    CALL("%d", *mode);
    int before = thread_mode;
    thread_mode = *mode, *mode = before;
    return 0;
}
Result cuStreamIsCapturing(void *stream, int *status) {
    CALL("%zu", (size_t)stream);
    struct capture *capture = capture_of(stream);
    *status = capture ? 1 + capture->lost : 0;
    return 0;
}
Result cuStreamBeginCapture_v2(void *stream, int mode) {
    CALL("%zu mode %d", (size_t)stream, mode);
    for (struct capture *c = captures; c < captures + CAPTURES_MAX; c++)
        if (!c->stream) return *c = (struct capture){stream, mode, 0, pthread_self()}, 0;
    return OUT_OF_MEMORY;
}
Result cuStreamEndCapture(void *stream, void **graph) {
    CALL("%zu", (size_t)stream);
    struct capture *capture = capture_of(stream);
    if (capture == NULL) return INVALID_VALUE;
    capture->stream = NULL;
    *graph = capture->lost ? NULL : &log_file;
    return capture->lost ? CAPTURE_INVALIDATED : 0;
}
Result cuGraphInstantiateWithFlags(void **exec, void *graph, uint64_t flags) { CALL("flags %zu", (size_t)flags); *exec = graph; return 0; }
Result cuGraphLaunch(void *exec, void *stream) { (void)exec; CALL("stream %zu", (size_t)stream); return 0; }
Result cuGraphExecDestroy(void *exec) { (void)exec; CALL(); return 0; }
Result cuGraphDestroy(void *graph) { (void)graph; CALL(); return 0; }
Result cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    CALL("%zu event %zu flags %u", (size_t)stream, (size_t)event, flags);
    return capture_of(stream) ? CAPTURE_ISOLATION : 0;
}
Result cuEventCreate(void **event, unsigned flags) { CALL("flags %u", flags); *event = (void *)++events; return 0; }
Result cuEventRecord(void *event, void *stream) { CALL("%zu stream %zu", (size_t)event, (size_t)stream); return 0; }
Result cuEventDestroy_v2(void *event) { CALL("%zu", (size_t)event); return 0; }

// Memory.

static Result allocate(Address *address, size_t bytes) {
    if (bytes == 0) return INVALID_VALUE;
    // As aligned as the driver's memory, and as little zero.
    void *memory = aligned_alloc(512, (bytes + 511) / 512 * 512);
    if (memory == NULL) return OUT_OF_MEMORY;
    memset(memory, 0xAA, bytes);
    *address = (Address)memory;
    return 0;
}

Result cuMemAlloc_v2(Address *address, size_t bytes) { CALL("%zu bytes", bytes); return allocate(address, bytes); }
Result cuMemAllocAsync(Address *address, size_t bytes, void *stream) {
    CALL("%zu bytes stream %zu", bytes, (size_t)stream);
    return allocate(address, bytes);
}
Result cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) {
    CALL("%zu bytes flags %u", bytes, flags);
    *memory = malloc(bytes);
    return *memory ? 0 : OUT_OF_MEMORY;
}
Result cuMemFreeHost(void *memory) { CALL(); free(memory); return 0; }
Result cuMemFree_v2(Address address) { CALL(); free((void *)address); return 0; }
Result cuMemFreeAsync(Address address, void *stream) {
    CALL("stream %zu", (size_t)stream);
    free((void *)address);
    return 0;
}
Result cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *stream) {
    CALL("%zu bytes stream %zu", bytes, (size_t)stream);
    memcpy((void *)to, from, bytes);
    return 0;
}
Result cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *stream) {
    CALL("%zu bytes stream %zu", bytes, (size_t)stream);
    memcpy(to, (void *)from, bytes);
    return 0;
}
Result cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void *stream) {
    CALL("%u %zu bytes stream %zu", value, bytes, (size_t)stream);
    if (context_of(stream) != current) return INVALID_HANDLE;
    memset((void *)to, value, bytes);
    return 0;
}

// Modules: anything is one, and has every function. A function is its name, what it declares in shared memory, and what it may
// be launched with beyond that: together no more than BLOCK_BYTES, until the attribute says otherwise. Nothing is freed, so that
// a function of an unloaded module, or of a context that ended, is known by its launch.

struct module {
    uint64_t context_id;
    int unloaded, static_bytes;
};
struct function {
    const struct module *module;
    int static_bytes, dynamic_bytes_max;
    char name[64];
};

Result cuModuleLoadData(struct module **module, const void *image) {
    CALL();
    NOT_IN_A_CAPTURE();
    if (current == NULL) return INVALID_CONTEXT;
    *module = calloc(1, sizeof **module);
    (*module)->context_id = ids[current - contexts];
    (*module)->static_bytes = atoi(image);
    return 0;
}
Result cuModuleUnload(struct module *module) {
    CALL();
    NOT_IN_A_CAPTURE();
    module->unloaded = 1;
    return 0;
}
Result cuModuleGetFunction(struct function **function, const struct module *module, const char *name) {
    CALL("%s", name);
    NOT_IN_A_CAPTURE(); // It may load what is loaded lazily.
    struct function *f = calloc(1, sizeof *f);
    f->module = module;
    snprintf(f->name, sizeof f->name, "%s", name);
    f->static_bytes = strcmp(name, "forward") == 0 ? 640 : module->static_bytes;
    f->dynamic_bytes_max = BLOCK_BYTES - f->static_bytes;
    *function = f;
    return 0;
}
Result cuFuncGetAttribute(int *value, int attribute, const struct function *f) {
    CALL("%s attribute %d", f->name, attribute);
    if (attribute != SHARED_SIZE_BYTES) return INVALID_VALUE;
    *value = f->static_bytes;
    return 0;
}
Result cuFuncSetAttribute(struct function *f, int attribute, int value) {
    CALL("%s attribute %d = %d", f->name, attribute, value);
    NOT_IN_A_CAPTURE();
    if (attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES || f->static_bytes + value > BLOCK_BYTES_OPTIN) return INVALID_VALUE;
    f->dynamic_bytes_max = value;
    return 0;
}
Result cuLaunchKernel(const struct function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared_bytes, void *stream, void **arguments, void **extra) {
    CALL("%s grid %ux%ux%u block %ux%ux%u shared %u stream %zu", f->name, gx, gy, gz, bx, by, bz, shared_bytes,
         (size_t)stream);
    if (current == NULL || f->module->unloaded || f->module->context_id != ids[current - contexts]) return INVALID_DEVICE_FUNCTION;
    if (context_of(stream) != current) return INVALID_HANDLE;
    if (capture_of(stream) && capture_of(stream)->lost) return CAPTURE_INVALIDATED;
    return arguments && !extra && shared_bytes <= (unsigned)f->dynamic_bytes_max ? 0 : INVALID_VALUE;
}

#ifndef WITHOUT_NVRTC
// NVRTC: compiles everything to a number, the shared memory that the kernels of a module declare (backward.cu, rows.cuh). A program
// is compiled by one thread.

static __thread char cubin[16];

#ifndef NVRTC_VERSION
#define NVRTC_VERSION 12990
#endif
#ifndef NVRTC_ARCHS
#define NVRTC_ARCHS 80, 90
#endif

static Result text(char *to) { memcpy(to, "x", 2); return 0; }
static Result text_size(size_t *bytes) { *bytes = 2; return 0; }

Result nvrtcVersion(int *major, int *minor) {
    // Without a choice one that does not exist, so that nothing of it is ever taken for a real one's.
    *major = number("STAND_IN_NVRTC", NVRTC_VERSION) / 1000, *minor = number("STAND_IN_NVRTC", NVRTC_VERSION) % 1000 / 10;
    return 0;
}
static const int archs[] = {NVRTC_ARCHS};
Result nvrtcGetNumSupportedArchs(int *count) { *count = sizeof archs / sizeof *archs; return 0; }
Result nvrtcGetSupportedArchs(int *to) { memcpy(to, archs, sizeof archs); return 0; }
Result nvrtcCreateProgram(void **program, const char *source, const char *name, int headers, const char *const *texts,
                          const char *const *names) {
    // What module.rs says of the class; a fold has none. What the blocks of a cluster share is dynamic.
    unsigned team = 32, teams = 32, pack = 1, packs = 0, sets = 0, cluster = 1, stages = 0;
    const char *class = strstr(source, "TEAM = "), *ring = strstr(source, "STAGES_MAX = ");
    if (class) sscanf(class, "TEAM = %u, TEAMS = %u, PACK = %u, PACKS = %u, SETS = %u, CLUSTER = %u", &team, &teams, &pack, &packs, &sets, &cluster);
    if (ring) sscanf(ring, "STAGES_MAX = %u", &stages);
    unsigned giving = (team < 32 ? team * teams / 32 : teams) / 2, warps = (team + 31) / 32;
    snprintf(cubin, sizeof cubin, "%u", cluster > 1 ? 0 : 8 * giving * pack * team + 8 * teams * sets * warps + 8 * teams * stages + 8);
    (void)name, (void)headers, (void)texts, (void)names;
    *program = &log_file;
    return 0;
}
Result nvrtcCompileProgram(void *program, int count, const char *const *options) {
    (void)program;
    CALL("%s", count ? options[0] : "");
    usleep(1000 * number("STAND_IN_COMPILE_MS", 0));
    return 0;
}
Result nvrtcDestroyProgram(void **program) { *program = NULL; return 0; }
Result nvrtcGetProgramLogSize(void *program, size_t *bytes) { (void)program; return text_size(bytes); }
Result nvrtcGetProgramLog(void *program, char *to) { (void)program; return text(to); }
Result nvrtcGetCUBINSize(void *program, size_t *bytes) { (void)program; *bytes = sizeof cubin; return 0; }
Result nvrtcGetCUBIN(void *program, char *to) { (void)program; memcpy(to, cubin, sizeof cubin); return 0; }
Result nvrtcGetPTXSize(void *program, size_t *bytes) { (void)program; return text_size(bytes); }
Result nvrtcGetPTX(void *program, char *to) { (void)program; return text(to); }
#endif
