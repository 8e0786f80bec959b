#include "reshard/convert.h"

#include <doctest/doctest.h>

#include <fstream>

#include "reshard/compare.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

using namespace llmctl;
using namespace llmctl::reshard;

TEST_CASE("convert: trained models survive the way to FasterTransformer and back") {
  for (const std::string name : {"llama-stories260K", "gpt2-nano-sort", "opt-tinystories-char59"}) {
    const auto source = test::test_data("models/" + name);
    if (!source) return;
    CAPTURE(name);
    const Model original = open_model(*source);
    for (const int64_t tp : {1, 2, 4}) {
      CAPTURE(tp);
      if (original.config().num_attention_heads % tp != 0) continue;
      test::TempDir dir;
      ConvertOptions options;
      options.source = *source;
      options.destination = dir / "ft";
      options.format = "ft";
      options.tp = tp;
      options.jobs = 2;
      Conversion(options).run();
      const Model ft = open_model(dir / "ft");
      CHECK(ft.config().num_key_value_heads == original.config().num_key_value_heads);
      const ModelDiff difference = diff(original, ft, {});
      for (const TensorDifference& d : difference.differences) {
        FAIL_CHECK(d.key << " differs: kind " << static_cast<int>(d.kind) << ", " << d.num_different
                         << " of " << d.num_elements);
      }
      CHECK(difference.num_tensors == original.keys().size() - (original.has("pos_lead") ? 1 : 0));
      CHECK(digest(ft, 2).digest == digest(original, 1).digest);
      ConvertOptions back;
      back.source = dir / "ft";
      back.destination = dir / "hf";
      back.format = "hf";
      Conversion(back).run();
      const Model again = open_model(dir / "hf");
      CHECK(diff(original, again, {}).differences.empty());
    }
  }
}
