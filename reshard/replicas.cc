#include "formats/core/error.h"
#include "reshard/box.h"
#include "reshard/executor.h"
#include "reshard/model.h"

namespace llmctl::reshard {

void check_replicas(const Model& model) {
  for (const std::string& key : model.keys()) {
    const std::vector<SourcePiece>& pieces = model.pieces(key);
    for (size_t j = 1; j < pieces.size(); ++j) {
      for (size_t i = 0; i < j; ++i) {
        const auto shared = intersect(IndexBox::of(pieces[i].piece), IndexBox::of(pieces[j].piece));
        if (!shared) continue;
        const auto read = [&](const SourcePiece& source) {
          return read_box(model, source, *shared);
        };
        if (read(pieces[i]) == read(pieces[j])) continue;
        const auto& tensors = model.checkpoint().tensors;
        throw_invalid(model.checkpoint().path.string(),
                      stored_name(tensors[static_cast<size_t>(pieces[i].tensor)]) + " and " +
                          stored_name(tensors[static_cast<size_t>(pieces[j].tensor)]) +
                          " should hold the same values of '" + key + "', and differ",
                      "the ranks are not of one checkpoint");
      }
    }
  }
}

}  // namespace llmctl::reshard
