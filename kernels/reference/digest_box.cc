#include "kernels/digest_box.h"

namespace llmctl::kernels {

uint64_t digest_box_reference(const void* data, int64_t width, const DigestBox& box) {
  for (int a = 0; a < box.num_axes; ++a) {
    if (box.extents[a] == 0) return 0;
  }
  const char* bytes = static_cast<const char*>(data);
  int64_t index[kMaxBoxAxes] = {};
  uint64_t sum = 0;
  for (;;) {
    int64_t offset = 0;
    uint64_t weight = 1;
    for (int a = 0; a < box.num_axes; ++a) {
      offset += index[a] * box.strides[a];
      weight *= box.weights[a][index[a]];
    }
    uint64_t bits = 0;
    for (int64_t byte = width; byte-- > 0;) {
      bits = bits << 8 | static_cast<unsigned char>(bytes[offset * width + byte]);
    }
    sum += (bits + 1) * weight;
    int a = box.num_axes - 1;
    while (a >= 0 && ++index[a] == box.extents[a]) index[a--] = 0;
    if (a < 0) return sum;
  }
}

}  // namespace llmctl::kernels
