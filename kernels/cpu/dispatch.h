// Inside the kernels and their tests only: every kernel with the instruction set as an argument.
// The public functions are these with `active_isa()`.
#pragma once

#include "kernels/copy_box.h"
#include "kernels/cpu/convert_runs.h"
#include "kernels/digest_box.h"
#include "kernels/isa.h"
#include "kernels/ops.h"
#include "kernels/panels.h"
#include "kernels/product.h"

namespace llmctl::kernels::cpu {

CastStats convert(Isa isa, void* dst, DType dst_dtype, const void* src, DType src_dtype,
                  int64_t count, Overflow overflow);
CastStats copy_box(Isa isa, void* dst, DType dst_dtype, const void* src, DType src_dtype,
                   const Box& box, Overflow overflow);
uint64_t digest_box(Isa isa, const void* data, int64_t width, const DigestBox& box);

void pack_panels(Isa isa, void* panels, const void* rows_data, DType dtype, int64_t rows,
                 int64_t columns);
void pack_panels_in_place(Isa isa, void* data, DType dtype, int64_t rows, int64_t columns,
                          ThreadPool& pool);
void unpack_panels(Isa isa, void* rows_data, const void* panels, DType dtype, int64_t rows,
                   int64_t columns);

void layer_norm(Isa isa, float* y, const float* x, const float* weight, const float* bias,
                int64_t num_tokens, int64_t hidden_size, float eps, ThreadPool& pool);
void rms_norm(Isa isa, float* y, const float* x, const float* weight, int64_t num_tokens,
              int64_t hidden_size, float eps, ThreadPool& pool);
void linear(Isa isa, float* y, const float* x, const PanelMatrix& w, const float* bias,
            int64_t num_tokens, int64_t y_stride, Activations activations, float* scratch,
            ThreadPool& pool);
void product(Isa isa, float* out, const float* left, const float* right, int64_t rows, int64_t k,
             int64_t columns);
void embedding(Isa isa, float* y, const PanelMatrix& table, const int32_t* ids, int64_t first_row,
               int64_t num_tokens, ThreadPool& pool);
void activation(Isa isa, float* x, int64_t count, ActivationOp op, ThreadPool& pool);
void gated_activation(Isa isa, float* y, const float* gate_up, int64_t num_tokens, int64_t n,
                      ActivationOp op, ThreadPool& pool);
void attention(Isa isa, float* y, const AttentionArgs& args, ThreadPool& pool);

}  // namespace llmctl::kernels::cpu
