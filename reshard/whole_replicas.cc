#include "reshard/whole_replicas.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "formats/core/error.h"

namespace llmctl::reshard {

using formats::StoredTensor;

namespace {

struct Held {
  std::string key;
  const SourcePiece* piece;
};

bool same_place(const SourcePiece& a, const SourcePiece& b) {
  return a.piece.lo == b.piece.lo && a.piece.n == b.piece.n && a.piece.stride == b.piece.stride &&
         a.piece.offset == b.piece.offset && a.step == b.step;
}

}  // namespace

WholeReplicas::WholeReplicas(const Model& model) {
  const std::vector<StoredTensor>& tensors = model.checkpoint().tensors;
  first_.resize(tensors.size());
  std::iota(first_.begin(), first_.end(), 0);
  replicas_.resize(tensors.size());
  std::vector<std::vector<Held>> held(tensors.size());
  for (const std::string& key : model.keys()) {
    for (const SourcePiece& piece : model.pieces(key)) {
      held[static_cast<size_t>(piece.tensor)].push_back({key, &piece});
    }
  }
  const auto has_no_padding = [&](size_t tensor) {
    int64_t elements = 0;
    for (const Held& h : held[tensor]) elements += h.piece->piece.num_elements();
    return elements == tensors[tensor].num_elements() && tensors[tensor].is_contiguous();
  };
  const auto same = [&](size_t a, size_t b) {
    if (tensors[a].dtype != tensors[b].dtype || tensors[a].shape != tensors[b].shape) return false;
    return std::equal(held[a].begin(), held[a].end(), held[b].begin(), held[b].end(),
                      [](const Held& x, const Held& y) {
                        return x.key == y.key && same_place(*x.piece, *y.piece);
                      });
  };
  std::map<std::string, std::vector<size_t>> by_first_key;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (held[i].empty() || !has_no_padding(i) || !tensors[i].is_contiguous()) continue;
    std::vector<size_t>& firsts = by_first_key[held[i].front().key];
    const auto found =
        std::find_if(firsts.begin(), firsts.end(), [&](size_t first) { return same(first, i); });
    if (found == firsts.end()) {
      firsts.push_back(i);
    } else {
      first_[i] = static_cast<int>(*found);
      replicas_[*found].push_back(static_cast<int>(i));
    }
  }
}

void throw_replicas_differ(const Model& model, int first, int second) {
  const std::vector<StoredTensor>& tensors = model.checkpoint().tensors;
  std::string keys;
  for (const std::string& key : model.keys()) {
    for (const SourcePiece& piece : model.pieces(key)) {
      if (piece.tensor == first) keys += (keys.empty() ? "'" : ", '") + key + "'";
    }
  }
  throw_invalid(model.checkpoint().path.string(),
                stored_name(tensors[static_cast<size_t>(first)]) + " and " +
                    stored_name(tensors[static_cast<size_t>(second)]) +
                    " should hold the same values of " + keys + ", and differ",
                "the ranks are not of one checkpoint");
}

}  // namespace llmctl::reshard
