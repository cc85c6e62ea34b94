#include "multiply.h"

#include "panels.h"

void bb_multiply(const bb_kernels *kernels, const bb_product *product, bb_consume *consume, void *context) {
    if (kernels->multiply && product->rows.num_rows >= kernels->multiply_from) {
        kernels->multiply(product, consume, context);
        return;
    }
    for (size_t panel = 0; panel < product->num_panels; panel++) {
        const uint32_t *words = bb_panel(product->panels, product->num_words, panel);
        kernels->count(product->rows, product->num_words, words, product->mask, product->counts);
        consume(context, panel, 0, product->rows.num_rows, product->counts);
    }
}
