/* y = x @ weight.T, or its GELU: x [n_rows, n_in] and panels (linear.h) -> y [n_rows, n_out], all float.
 * Compiled at start by kernels.py.
 */
#include "linear.h"

void multiply(const float *x, const float *panels, float *y, int64_t n_rows, int64_t n_in, int64_t n_out,
              int64_t with_gelu, int64_t n_threads) {
#pragma omp parallel for schedule(static) num_threads(n_threads)
    for (int64_t first = 0; first < n_out; first += PANEL)
        multiply_panel(x, panels, y, n_rows, n_in, n_out, first, with_gelu ? GELU : STORE);
}
