// Rows that bulk copies bring to shared memory. From compute capability 9.0 on.
//
// A bulk copy takes whole words of 16 bytes: of a row that is not ALIGNED those that it lies in, with what else is in the first and the last, as
// long as they lie between the operand's ends; elements of words that do not are copied one by one, which happens to its first and last row alone.
// A buffer begins with the row's first word, so the row begins in it as many bytes after 16 as in memory. For example a row of 4097 bf16 at address
// 8194 of an operand at 0: bytes 8194 to 16387 lie in the words from 8192 to 16400, which are copied; the row is then 2 bytes after the
// beginning of the buffer. If the operand ends at 16388, the last word is left out, and elements 4095 and 4096 are copied alone.

// Where a row begins in its buffer.
__device__ __forceinline__ u32 skew(const T* row) { return ALIGNED ? 0 : (u32)((u64)row % 16); }

// Bytes of such a buffer: bulk copies are fast to multiples of 128.
__device__ __forceinline__ u32 pitch_of(u32 hidden) { return (hidden * (u32)sizeof(T) + (ALIGNED ? 0 : BEYOND) + 127) / 128 * 128; }

// A row of an operand, from `row` to `row_end`, and what is copied in words: `from` to `to`. `last` is the operand's last row, beyond which none ends.
struct Arriving {
    const unsigned char *row, *row_end, *from, *to;

    __device__ __forceinline__ Arriving(const T* operand, const T* begin, const T* last, u32 hidden) {
        row = from = (const unsigned char*)begin;
        row_end = to = row + hidden * sizeof(T);
        if (!ALIGNED) {
            from -= (u64)row % 16, to += (0 - (u64)row_end) % 16;
            if (from < (const unsigned char*)operand) from += 16;
            if (to > (const unsigned char*)(last + hidden)) to -= 16;
        }
    }

    // Where a byte belongs in the row's buffer.
    __device__ __forceinline__ u32 place(const unsigned char* byte) const { return (u32)(byte - row) + skew((const T*)row); }
    __device__ __forceinline__ u32 bytes() const { return (u32)(to - from); }
    __device__ __forceinline__ void copy(unsigned char* buffer, u64* barrier) const { bulk_copy(buffer + place(from), from, bytes(), barrier); }

    // Copies the rest of the row.
    __device__ __forceinline__ void ends(unsigned char* buffer) const {
        if (from <= row && to >= row_end) return;
#pragma unroll 1
        for (const unsigned char* e = row; e < from; e += sizeof(T)) *(T*)(buffer + place(e)) = *(const T*)e;
#pragma unroll 1
        for (const unsigned char* e = to; e < row_end; e += sizeof(T)) *(T*)(buffer + place(e)) = *(const T*)e;
        async_proxy_fence();  // a bulk copy may write there next
    }
};

// A pack of a row that has arrived. Reading twice is sooner here than to hand over (rows.cuh), and other words lie around the row: a word of a
// split row is put together of the two that it lies in.
template <typename E> __device__ __forceinline__ Pack<E> load_arrived(const E* row, Column column, u32 hidden) {
    if constexpr (ALIGNED || sizeof(E) == 4) return load_pack(row, column, hidden);
    Pack<E> v = {};
    if (column.is_outside(hidden)) return v;
    const u32 odd = (u32)(u64)row & 2, bits = 8 * odd;
    const u16* words = (const u16*)((const unsigned char*)row - odd);
#pragma unroll
    for (u32 i = 0; i < PACK; i += 2) {
        if (!column.whole && !column.has(i, hidden)) continue;
        const u16* at = column.at(words, i);
        const u32 word = (u32)(((u64)load_word(at + 2) << 32 | load_word(at)) >> bits);
        v.word(i / 2) = column.whole || column.has(i + 1, hidden) ? word : word & 0xffff;
    }
    return v;
}
