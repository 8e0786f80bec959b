#include "kernels/cpu/simd_avx512.h"

// The body is written over the Simd of the header above.
#include "kernels/cpu/product_body.h"

namespace llmctl::kernels::cpu {

void avx512_product_tile(const ProductTile& args) { product_tile(args); }

}  // namespace llmctl::kernels::cpu
