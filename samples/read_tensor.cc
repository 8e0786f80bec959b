// Opens any checkpoint that llmctl can read and prints what one canonical tensor holds, whatever
// the format, the fusing and the number of parallel ranks it is stored in.
//
//     sample_read_tensor CKPT [TENSOR]          e.g. sample_read_tensor ./bloom-ft layers.0.q
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "reshard/executor.h"
#include "reshard/model.h"

int main(int argc, char** argv) {
  using namespace llmctl;
  if (argc < 2) {
    std::fprintf(stderr, "usage: sample_read_tensor CKPT [TENSOR]\n");
    return 2;
  }
  try {
    const reshard::Model model = reshard::open_model(argv[1]);
    const std::string key = argc > 2 ? argv[2] : "layers.0.q";
    if (!model.has(key)) {
      std::fprintf(stderr, "no tensor '%s'; there are:", key.c_str());
      for (const std::string& known : model.keys()) std::fprintf(stderr, " %s", known.c_str());
      std::fprintf(stderr, "\n");
      return 2;
    }
    const reshard::CanonicalTensor& tensor = reshard::Model::canonical_of(key);
    const Shape shape = reshard::canonical_shape(tensor, model.sizes());
    const int64_t rows = shape.front(), row_size = checked_num_elements(shape).value() / rows;

    // Row by row: memory stays small however large the tensor is.
    std::vector<float> row(static_cast<size_t>(row_size));
    double sum = 0, largest = 0;
    for (int64_t i = 0; i < rows; ++i) {
      reshard::read_canonical_rows(model, key, i, 1, row);
      for (const float value : row) {
        sum += std::fabs(value);
        largest = std::max(largest, static_cast<double>(std::fabs(value)));
      }
    }
    std::printf("%s (%s) of %s: mean |x| %.6f, largest |x| %.6f\n", key.c_str(),
                std::string(tensor.axes).c_str(), model.config().family.c_str(),
                sum / static_cast<double>(rows * row_size), largest);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
