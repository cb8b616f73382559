/* Panels of x @ weight.T for the few rows of a decoding step, on CPUs with AVX2 or AVX-512.
 *
 * -DLANES=8 -DVECTORS=3 fills the 16 registers of AVX2, -DLANES=16 -DVECTORS=4 the 32 of AVX-512. A weight is stored as panels [ceil(n_out / PANEL), n_in, PANEL]: PANEL outputs side by side, padded with
 * zeros. Each weight is read from memory once and used for all rows while it is cached: a block of DEPTH
 * inputs of a panel stays in the L1 cache, the sums of TILE rows in registers. Memory latency is the limit,
 * so each tile prefetches its share of the next block.
 * An output is summed in the same order whatever the other rows, their number and the threads.
 * After Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008).
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if LANES == 16 ? !defined __AVX512F__ : !defined __AVX2__
#error "this kernel is written for the registers of AVX2 or AVX-512"
#endif

enum { PANEL = LANES * VECTORS, TILE = 4, DEPTH = 6144 / PANEL, GROUP = 64, LINE = 16 };

typedef float vec __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

/* sums [TILE, PANEL] += `depth` inputs of TILE rows times a block. Prefetches `step` floats of `next` per input. */
static inline void add_tile(const float *const rows[TILE], const float *block, int64_t depth, float *sums,
                            const float *next, int64_t step) {
    const float *row0 = rows[0], *row1 = rows[1], *row2 = rows[2], *row3 = rows[3];
    vec sum[TILE][VECTORS];
    memcpy(sum, sums, sizeof sum);
    for (int64_t k = 0; k < depth; k++) {
        vec weight[VECTORS];
        /* A lone tile's share is several lines. */
        for (int64_t i = 0; i < step; i += LINE) __builtin_prefetch(next + k * step + i, 0, 2);
        for (int v = 0; v < VECTORS; v++) {
            weight[v] = *(const vec *)(block + k * PANEL + v * LANES);
            /* Keep it in a register: GCC would load it again for each of the four rows. */
            __asm__("" : "+v"(weight[v]));
        }
        for (int v = 0; v < VECTORS; v++) sum[0][v] += row0[k] * weight[v];
        for (int v = 0; v < VECTORS; v++) sum[1][v] += row1[k] * weight[v];
        for (int v = 0; v < VECTORS; v++) sum[2][v] += row2[k] * weight[v];
        for (int v = 0; v < VECTORS; v++) sum[3][v] += row3[k] * weight[v];
    }
    memcpy(sums, sum, sizeof sum);
}

/* x / 2 * erfc(-x / sqrt(2)), with erfc of a fractional error below 1.2e-7 everywhere (Press et al.,
 * "Numerical Recipes", 6.2: Chebyshev fitting). */
static inline float gelu(float x) {
    static const float c[] = {-1.26551223f, 1.00002368f,  0.37409196f, 0.09678418f,  -0.18628806f,
                              0.27886807f,  -1.13520398f, 1.48851587f, -0.82215223f, 0.17087277f};
    float z = fabsf(x) * 0.70710678f, t = 1 / (1 + 0.5f * z), polynomial = c[9];
    for (int i = 8; i >= 0; i--) polynomial = polynomial * t + c[i];
    float erfc = t * expf(polynomial - z * z);
    return 0.5f * x * (x < 0 ? erfc : 2 - erfc);
}

/* What becomes of the sums. */
enum epilogue { STORE, ADD, GELU };

/* Outputs [first, first + PANEL) of y = x @ weight.T, y += x @ weight.T or y = gelu(x @ weight.T), for all rows. */
static inline void multiply_panel(const float *x, const float *panels, float *y, int64_t n_rows, int64_t n_in,
                                  int64_t n_out, int64_t first, enum epilogue epilogue) {
    const float *panel = panels + first * n_in;
    int64_t width = n_out - first < PANEL ? n_out - first : PANEL;
    for (; n_rows > 0; n_rows -= GROUP, x += GROUP * n_in, y += GROUP * n_out) {
        float sums[GROUP * PANEL];
        int64_t n = n_rows < GROUP ? n_rows : GROUP, n_tiles = (n + TILE - 1) / TILE;
        int64_t step = (PANEL + n_tiles - 1) / n_tiles;
        memset(sums, 0, n_tiles * TILE * PANEL * sizeof(float));
        for (int64_t k = 0; k < n_in; k += DEPTH) {
            int64_t depth = n_in - k < DEPTH ? n_in - k : DEPTH;
            const float *block = panel + k * PANEL, *next = block + depth * PANEL;
            for (int64_t tile = 0; tile < n_tiles; tile++) {
                const float *rows[TILE];
                for (int r = 0; r < TILE; r++) {
                    int64_t row = tile * TILE + r; /* the last tile repeats the last row */
                    rows[r] = x + (row < n ? row : n - 1) * n_in + k;
                }
                add_tile(rows, block, depth, sums + tile * TILE * PANEL, next + tile * depth * step, step);
            }
        }
        for (int64_t row = 0; row < n; row++) {
            const float *sum = sums + row * PANEL;
            float *to = y + row * n_out + first;
            if (epilogue == STORE) memcpy(to, sum, width * sizeof(float));
            if (epilogue == ADD)
                for (int64_t i = 0; i < width; i++) to[i] += sum[i];
            if (epilogue == GELU)
                for (int64_t i = 0; i < width; i++) to[i] = gelu(sum[i]);
        }
    }
}
