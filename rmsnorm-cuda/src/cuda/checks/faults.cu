// Kernels with one fault each, for 64 threads and n floats that nobody has written: what each sanitizer must report, or it is blind.

extern "C" __global__ void memcheck(float* p, unsigned n) { p[n + threadIdx.x] = 1.0f; }  // past the end

extern "C" __global__ void initcheck(float* p, unsigned n) { p[threadIdx.x] = p[n - 1 - threadIdx.x] + 1.0f; }

extern "C" __global__ void racecheck(float* p, unsigned n) {
    __shared__ float of_thread[64];
    of_thread[threadIdx.x] = n;
    p[threadIdx.x] = of_thread[63 - threadIdx.x];  // the other warp's, and no barrier between
}

extern "C" __global__ void synccheck(float* p, unsigned n) {
    if (threadIdx.x < 48) __syncthreads();  // half of the second warp
    p[threadIdx.x] = n;
}
