/* AMX: products of many rows as tiles of bytes; everything else as in AVX-512.
 *
 * A tile instruction multiplies 16 rows by 16 columns over 64 bytes. With x and w bits and w taken as a byte 0 or 1,
 *
 *     popcount(x XOR w) = popcount(x) + sum (1 - 2 x_k) w_k        popcount(x AND w) = sum x_k w_k
 *
 * so tiles start at popcount(x) and add up the sums: the integers are those of every other instruction set. Rows become
 * bytes once for all panels; the right operand stays bits in memory and becomes bytes a panel at a time, in a buffer
 * that stays in the first-level cache. Rows are loaded past that cache, and counts are consumed 32 rows at a time, so
 * that nothing else needs room in it.
 *
 * The order of the common dimension is free as long as both sides agree. Here quad r of a 32-bit word holds its bits
 * r, r + 8, r + 16 and r + 24: those of a vector of words are one shift and one mask away.
 */
#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>
#include <math.h>

#include "panels.h"
#include "target.h"
#include "tiles.h"

BB_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,popcnt,amx-tile,amx-int8")

#include "avx512.h"

enum {
    CHUNKS = 12, /* 64-bit words of a panel that are bytes at a time: 24 KiB */
    COUNTS_STRIDE = BB_PANEL * sizeof(uint32_t),
};

/* 16 rows as tiles, one a 64-bit word, then the tile that their counts start from. Absent rows are zeros. */
static void spread_rows(bb_rows rows, size_t num_chunks, bool mask, int8_t *tiles) {
    const __m512i bytes = _mm512_inserti64x4(_mm512_set1_epi32(0x03020100), _mm256_set1_epi32(0x07060504), 1);
    const __m512i low_bits = _mm512_set4_epi32(0x08080808, 0x04040404, 0x02020202, 0x01010101);
    const __m512i bit = _mm512_mask_slli_epi32(low_bits, 0xf0f0, low_bits, 4);
    const __m512i clear = _mm512_set1_epi8(mask ? 0 : 1), set = _mm512_set1_epi8(mask ? 1 : -1);
    for (size_t row = 0; row < BB_TILE_ROWS; row++) {
        int8_t *out = tiles + row * 64;
        int32_t ones = 0;
        for (size_t chunk = 0; chunk < num_chunks; chunk++, out += BB_TILE_BYTES) {
            __m512i values = _mm512_setzero_si512();
            if (row < rows.num_rows) {
                uint64_t word;
                memcpy(&word, rows.words + row * rows.stride + 2 * chunk, sizeof word);
                const __m512i spread = _mm512_shuffle_epi8(_mm512_set1_epi64((long long)word), bytes);
                values = _mm512_mask_mov_epi8(clear, _mm512_test_epi8_mask(spread, bit), set);
                if (!mask) ones += (int32_t)__builtin_popcountll(word);
            }
            _mm512_store_si512(out, values);
        }
        _mm512_store_si512(out, _mm512_set1_epi32(ones));
    }
}

/* The words of 32 columns as bytes 0 and 1: a chunk's two tiles of 16 columns lie side by side. */
static void spread_panel(const uint32_t *panel, size_t num_chunks, int8_t *tiles) {
    const __m512i one = _mm512_set1_epi8(1);
    for (size_t chunk = 0; chunk < num_chunks; chunk++)
        for (size_t word = 0; word < 2; word++)
            for (size_t half = 0; half < 2; half++, panel += 16) {
                const __m512i words = _mm512_load_si512(panel);
                int8_t *out = tiles + (chunk * 2 + half) * BB_TILE_BYTES + word * 8 * 64;
                for (unsigned r = 0; r < 8; r++) _mm512_store_si512(out + r * 64, _mm512_and_si512(_mm512_srli_epi32(words, r), one));
            }
}

/* Adds the products of one or two groups of 16 rows to their counts, which begin in `start` tiles or in `counts`.
 * Meanwhile fetches what comes `next`, `num_lines` cache lines a chunk: it lies beyond the second-level cache. */
BB_INLINE void multiply_tiles(const int8_t *upper, const int8_t *lower, const int8_t *panel, size_t num_chunks, const int8_t *upper_start,
                              const int8_t *lower_start, uint32_t *counts, const uint32_t *next, size_t num_lines) {
    if (upper_start) {
        _tile_loadd(0, upper_start, 64);
        _tile_loadd(1, upper_start, 64);
        if (lower) _tile_loadd(2, lower_start, 64);
        if (lower) _tile_loadd(3, lower_start, 64);
    } else {
        _tile_loadd(0, counts, COUNTS_STRIDE);
        _tile_loadd(1, counts + 16, COUNTS_STRIDE);
        if (lower) _tile_loadd(2, counts + BB_TILE_ROWS * BB_PANEL, COUNTS_STRIDE);
        if (lower) _tile_loadd(3, counts + BB_TILE_ROWS * BB_PANEL + 16, COUNTS_STRIDE);
    }
    for (size_t chunk = 0; chunk < num_chunks; chunk++, panel += 2 * BB_TILE_BYTES) {
        for (size_t line = 0; line < num_lines; line++, next += 16) __builtin_prefetch(next);
        _tile_stream_loadd(4, upper + chunk * BB_TILE_BYTES, 64);
        _tile_loadd(6, panel, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, panel + BB_TILE_BYTES, 64);
        _tile_dpbssd(1, 4, 7);
        if (!lower) continue;
        _tile_stream_loadd(5, lower + chunk * BB_TILE_BYTES, 64);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, counts, COUNTS_STRIDE);
    _tile_stored(1, counts + 16, COUNTS_STRIDE);
    if (lower) _tile_stored(2, counts + BB_TILE_ROWS * BB_PANEL, COUNTS_STRIDE);
    if (lower) _tile_stored(3, counts + BB_TILE_ROWS * BB_PANEL + 16, COUNTS_STRIDE);
}

static void multiply(const bb_product *product, bb_consume *consume, void *context) {
    int8_t panel_tiles[CHUNKS * 2 * BB_TILE_BYTES] __attribute__((aligned(64)));
    const bb_rows rows = product->rows;
    const size_t num_chunks = product->num_words / 2, group_bytes = (num_chunks + 1) * BB_TILE_BYTES;
    for (size_t row = 0; row < rows.num_rows; row += BB_TILE_ROWS) {
        const bb_rows group = {.words = rows.words + row * rows.stride, .stride = rows.stride, .num_rows = rows.num_rows - row};
        spread_rows(group, num_chunks, product->mask, product->bytes + row / BB_TILE_ROWS * group_bytes);
    }
    /* A chunk of a panel is four lines of 64 bytes: all of the next panel's, shared among the pairs of groups. */
    const size_t num_pairs = (rows.num_rows + 2 * BB_TILE_ROWS - 1) / (2 * BB_TILE_ROWS), num_lines = num_pairs < 4 ? 4 / num_pairs : 1;
    _tile_loadconfig(&bb_tile_shapes);
    for (size_t panel = 0; panel < product->num_panels; panel++)
        for (size_t first = 0; first < num_chunks; first += CHUNKS) {
            const size_t count = num_chunks - first < CHUNKS ? num_chunks - first : CHUNKS;
            const uint32_t *words = bb_panel(product->panels, product->num_words, panel) + first * 2 * BB_PANEL;
            spread_panel(words, count, panel_tiles);
            for (size_t row = 0; row < rows.num_rows; row += 2 * BB_TILE_ROWS) {
                const size_t rest = rows.num_rows - row, num_rows = rest < 2 * BB_TILE_ROWS ? rest : 2 * BB_TILE_ROWS;
                const int8_t *tiles = product->bytes + row / BB_TILE_ROWS * group_bytes, *upper = tiles + first * BB_TILE_BYTES;
                const int8_t *start = first ? NULL : tiles + num_chunks * BB_TILE_BYTES;
                const uint32_t *next = words + (count * 4 + row / (2 * BB_TILE_ROWS) * count * num_lines) * 16;
                uint32_t *counts = product->counts + (num_chunks > CHUNKS ? row * BB_PANEL : 0);
                if (rest > BB_TILE_ROWS)
                    multiply_tiles(upper, upper + group_bytes, panel_tiles, count, start, start ? start + group_bytes : NULL, counts, next, num_lines);
                else
                    multiply_tiles(upper, NULL, panel_tiles, count, start, NULL, counts, next, num_lines);
                if (first + count == num_chunks) consume(context, panel, row, num_rows, counts);
            }
        }
    _tile_release();
}

/* Tile products on registers alone. */
static double spin(size_t rounds) {
    _tile_loadconfig(&bb_tile_shapes);
    for (size_t round = 0; round < rounds; round++) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_release();
    return (double)rounds * 4 * BB_TILE_ROWS * 16 * 64;
}

const bb_kernels bb_amx_kernels = {
    .name = "amx", .count = count_words, .multiply = multiply, .multiply_from = BB_TILE_ROWS + 1, .spin = spin, BB_ELEMENTWISE};

BB_TARGET_END
#endif
