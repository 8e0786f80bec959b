// The decoder's operations on the CPU, F32 activations. Each has a plain F64-accumulating twin in
// namespace `reference` with the same signature (less the pool), which is the oracle for all
// others. Every op's result for one token is bit-for-bit independent of the other tokens in the
// call, of the number of threads, and of how a sequence is cut into calls.
#pragma once

#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/embedding.h"
#include "kernels/layer_norm.h"
#include "kernels/linear.h"
#include "kernels/rotary.h"
