/* Products of codes on AMX tiles of bytes, scaled where they lie: integers as torch's, in a third of the time.
 *
 * A tile instruction multiplies 16 rows by 16 columns over 64 bytes of the common dimension. Signs are packed once a
 * call into panels of 32 columns, whose tiles hold quads of four consecutive bytes a column. 512 columns of panels stay
 * in the second-level cache while rows pass, 32 at a time; all 512 columns of a row are written before the next row's,
 * because stores of 128 bytes each to a page of its own took as long as the products. Sums are scaled 32 x 32 at a
 * time from 4 KiB that never leave the first-level cache.
 */
#if defined(__x86_64__)
#include "training.h"

#include "../src/target.h"
#include "../src/tiles.h"
#include "rows.h"

enum {
    DEPTH = 64,        /* bytes of the common dimension a tile */
    SIDE = 32,         /* rows and columns of four tiles of sums */
    BLOCK_ROWS = 256,
    BLOCK_COLUMNS = 512,
};

BB_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,fma,amx-tile,amx-int8")
#include "vectors.h"

typedef struct {
    const int8_t *codes, *signs;
    int8_t *panels;
    const float *scale, *bias;
    size_t num_scales, rows, depth, width;
    float *out;
} product_job;

/* Panel p, chunk c: two tiles of 16 columns side by side; row q of a tile is quad q of the chunk for each column. */
static void pack_panel(void *context, size_t worker, size_t panel) {
    (void)worker;
    const product_job *job = context;
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i column = _mm512_mullo_epi32(lanes, _mm512_set1_epi32((int)job->depth));
    int8_t *tile = job->panels + panel * SIDE * job->depth;
    for (size_t chunk = 0; chunk < job->depth; chunk += DEPTH)
        for (size_t half = 0; half < 2; half++, tile += BB_TILE_BYTES) {
            const int8_t *first = job->signs + (panel * SIDE + half * BB_TILE_ROWS) * job->depth + chunk;
            for (size_t quad = 0; quad < DEPTH / 4; quad++)
                _mm512_storeu_si512(tile + quad * 64, _mm512_i32gather_epi32(column, first + quad * 4, 1));
        }
}

BB_INLINE void scale_sums(const product_job *job, const int32_t *sums, size_t row, size_t column) {
    for (size_t half = 0; half < SIDE; half += BB_LANES) {
        const size_t first = column + half;
        const __m512 scale = job->num_scales == 1 ? _mm512_set1_ps(job->scale[0]) : _mm512_loadu_ps(job->scale + first);
        const __m512 bias = _mm512_loadu_ps(job->bias + first);
        for (size_t i = 0; i < SIDE; i++) {
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + i * SIDE + half));
            /* Not fused: torch rounds the product before it adds. */
            _mm512_storeu_ps(job->out + (row + i) * job->width + first, _mm512_add_ps(_mm512_mul_ps(sum, scale), bias));
        }
    }
}

/* Four tiles of sums, all of the common dimension. */
BB_INLINE void multiply(const product_job *job, size_t row, size_t column) {
    const size_t depth = job->depth;
    const int8_t *panel = job->panels + column * depth;
    const int8_t *upper = job->codes + row * depth, *lower = upper + BB_TILE_ROWS * depth;
    int32_t sums[SIDE * SIDE] __attribute__((aligned(64)));
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t chunk = 0; chunk < depth; chunk += DEPTH, panel += 2 * BB_TILE_BYTES) {
        _tile_loadd(4, upper + chunk, depth);
        _tile_loadd(6, panel, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, panel + BB_TILE_BYTES, 64);
        _tile_dpbssd(1, 4, 7);
        _tile_loadd(5, lower + chunk, depth);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, sums, SIDE * sizeof *sums);
    _tile_stored(1, sums + BB_TILE_ROWS, SIDE * sizeof *sums);
    _tile_stored(2, sums + BB_TILE_ROWS * SIDE, SIDE * sizeof *sums);
    _tile_stored(3, sums + BB_TILE_ROWS * SIDE + BB_TILE_ROWS, SIDE * sizeof *sums);
    scale_sums(job, sums, row, column);
}

BB_INLINE size_t least(size_t a, size_t b) { return a < b ? a : b; }

static void product_block(void *context, size_t worker, size_t index) {
    (void)worker;
    const product_job *job = context;
    const size_t begin = index * BLOCK_ROWS, end = least(begin + BLOCK_ROWS, job->rows);
    _tile_loadconfig(&bb_tile_shapes);
    for (size_t first = 0; first < job->width; first += BLOCK_COLUMNS)
        for (size_t row = begin; row < end; row += SIDE)
            for (size_t column = first; column < least(first + BLOCK_COLUMNS, job->width); column += SIDE) multiply(job, row, column);
    _tile_release();
}

BB_TARGET_END

int bb_training_tiles(void) { return bb_tiles_permitted(); }

void bb_training_product(bb_pool *pool, const int8_t *codes, const int8_t *signs, const float *scale, size_t num_scales, const float *bias,
                         size_t rows, size_t depth, size_t width, float *out) {
    product_job job = {.codes = codes, .signs = signs, .scale = scale, .bias = bias, .num_scales = num_scales, .rows = rows, .depth = depth,
                       .width = width, .out = out};
    job.panels = aligned_alloc(64, width * depth);
    if (!job.panels) abort();
    bb_pool_run(pool, width / SIDE, pack_panel, &job);
    bb_pool_run(pool, (rows + BLOCK_ROWS - 1) / BLOCK_ROWS, product_block, &job);
    free(job.panels);
}
#endif
