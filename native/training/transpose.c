/* A matrix of bfloat16 the other way round: products read a transposed operand at half the speed of a plain one. */
#if defined(__x86_64__)
#include "training.h"

#include "../src/target.h"
#include "rows.h"

BB_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,fma")
#include "vectors.h"

/* Blocks of reads of 128 bytes and writes of 512: pages and cache lines are used whole on both sides. */
enum { TILE_COLUMNS = 16, TILE_ROWS = 32, BLOCK_COLUMNS = 64, BLOCK_ROWS = 256 };

typedef struct {
    const uint16_t *in;
    size_t rows, width;
    uint16_t *out;
} transpose_job;

/* 32 rows of 16 columns: pairs of rows side by side make 16 vectors of 16 pairs, which are transposed as 32-bit numbers. */
BB_INLINE void transpose_tile(const uint16_t *in, size_t width, uint16_t *out, size_t rows) {
    __m512i a[16], b[16];
    for (size_t pair = 0; pair < 16; pair++) {
        const __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(in + 2 * pair * width)));
        const __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(in + (2 * pair + 1) * width)));
        a[pair] = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
    }
    for (size_t i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    /* a[i + k]: within each 128-bit lane l, column 4 l + k of pairs i to i + 3. */
    for (size_t i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (size_t k = 0; k < 4; k++) {
        const __m512i low = _mm512_shuffle_i32x4(a[k], a[4 + k], 0x44), high = _mm512_shuffle_i32x4(a[k], a[4 + k], 0xee);
        const __m512i low2 = _mm512_shuffle_i32x4(a[8 + k], a[12 + k], 0x44), high2 = _mm512_shuffle_i32x4(a[8 + k], a[12 + k], 0xee);
        _mm512_storeu_si512(out + k * rows, _mm512_shuffle_i32x4(low, low2, 0x88));
        _mm512_storeu_si512(out + (4 + k) * rows, _mm512_shuffle_i32x4(low, low2, 0xdd));
        _mm512_storeu_si512(out + (8 + k) * rows, _mm512_shuffle_i32x4(high, high2, 0x88));
        _mm512_storeu_si512(out + (12 + k) * rows, _mm512_shuffle_i32x4(high, high2, 0xdd));
    }
}

static void transpose_block(void *context, size_t worker, size_t index) {
    (void)worker;
    const transpose_job *job = context;
    const size_t first = index * BLOCK_COLUMNS, end = first + BLOCK_COLUMNS < job->width ? first + BLOCK_COLUMNS : job->width;
    for (size_t begin = 0; begin < job->rows; begin += BLOCK_ROWS) {
        const size_t last = begin + BLOCK_ROWS < job->rows ? begin + BLOCK_ROWS : job->rows;
        for (size_t column = first; column < end; column += TILE_COLUMNS)
            for (size_t row = begin; row < last; row += TILE_ROWS)
                transpose_tile(job->in + row * job->width + column, job->width, job->out + column * job->rows + row, job->rows);
    }
}

BB_TARGET_END

void bb_training_transpose(bb_pool *pool, const uint16_t *in, size_t rows, size_t width, uint16_t *out) {
    transpose_job job = {.in = in, .rows = rows, .width = width, .out = out};
    bb_pool_run(pool, (width + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS, transpose_block, &job);
}
#endif
