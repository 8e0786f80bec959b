#include "formats/checkpoint.h"

namespace llmctl::formats {

int64_t StoredTensor::num_elements() const { return checked_num_elements(shape).value(); }

uint64_t StoredTensor::num_bytes() const { return checked_num_bytes(dtype, shape).value(); }

bool StoredTensor::is_contiguous() const {
  // Without elements any strides will do, and the product below could overflow.
  if (strides.empty() || num_elements() == 0) return true;
  int64_t expected = 1;
  for (size_t axis = shape.size(); axis-- > 0;) {
    if (shape[axis] != 1 && strides[axis] != expected) return false;
    expected *= shape[axis];
  }
  return true;
}

}  // namespace llmctl::formats
