#include "reshard/model.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <set>
#include <tuple>
#include <unordered_map>

#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/file_decoder.h"
#include "formats/json.h"
#include "formats/registry.h"
#include "kernels/quantized.h"
#include "reshard/box.h"
#include "reshard/export.h"
#include "reshard/faster_transformer.h"
#include "reshard/megatron.h"
#include "reshard/panel_file.h"
#include "reshard/quantization.h"
#include "reshard/rank_layout.h"

namespace llmctl::reshard {

using formats::Checkpoint;
using formats::StoredTensor;

std::string with_layer(std::string_view pattern, int64_t layer) {
  std::string text(pattern);
  const size_t at = text.find("{l}");
  if (at != std::string::npos) text.replace(at, 3, std::to_string(layer));
  return text;
}

bool is_layer_pattern(std::string_view pattern) {
  return pattern.find("{l}") != std::string_view::npos;
}

std::string stored_name(const StoredTensor& tensor) {
  std::string name = "tensor '" + printable(tensor.name) + "'";
  if (tensor.tp_rank >= 0) name += " of rank " + std::to_string(tensor.tp_rank);
  return name;
}

const std::vector<SourcePiece>& Model::pieces(const std::string& key) const {
  const auto it = pieces_.find(key);
  if (it == pieces_.end()) {
    throw Error(ErrorCode::kInternal, "no canonical tensor '" + key + "' in the model");
  }
  return it->second;
}

const CanonicalTensor& Model::canonical_of(const std::string& key) {
  const size_t dot = key.rfind('.');
  return *find_canonical(dot == std::string::npos ? key : key.substr(dot + 1));
}

namespace {

/// A name with its first all-digit component replaced by {l}, and that number.
struct NormalName {
  std::string text;
  int64_t layer = -1;
};

NormalName normalise(const std::string& name) {
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    int64_t number = 0;
    const auto result = std::from_chars(name.data() + begin, name.data() + end, number);
    const bool canonical = end > begin && name[begin] >= '0' && name[begin] <= '9' &&
                           (name[begin] != '0' || end == begin + 1);
    if (canonical && result.ec == std::errc() && result.ptr == name.data() + end) {
      return {name.substr(0, begin) + "{l}" + name.substr(end), number};
    }
    begin = end + 1;
  }
  return {name, -1};
}

std::string shape_text(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

/// Levenshtein distance, for "did you mean".
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

/// Fills a Model step by step; one use.
class ModelBuilder {
 public:
  ModelBuilder(Checkpoint checkpoint, const OpenOptions& options) {
    model_.checkpoint_ = std::move(checkpoint);
    model_.notes_ = model_.checkpoint_.notes;
    for (const auto& [name, rule] : model_.checkpoint_.dropped) {
      model_.dropped_.push_back({name, rule});
    }
    where_ = model_.checkpoint_.path.string();
    read_description(options);
  }

  ModelBuilder(const Family& family, const ModelConfig& config) {
    model_.family_ = &family;
    model_.config_ = config;
    where_ = family.name;
  }

  Model build() {
    model_.sizes_ = std::make_shared<AxisSizes>(model_.config_);
    index_rules();
    map_tensors();
    settle_head();
    check_complete();
    check_derived();
    order_keys();
    return std::move(model_);
  }

  Model build_canonical(DType dtype, const std::string& origin) {
    model_.sizes_ = std::make_shared<AxisSizes>(model_.config_);
    model_.checkpoint_.format = "canonical";
    model_.checkpoint_.path = where_;
    model_.checkpoint_.texts["origin"] = origin;
    model_.checkpoint_.files.push_back({where_, UINT64_MAX});
    uint64_t offset = 0;
    for (const std::string_view name : expected_canonical(model_.config_)) {
      const CanonicalTensor& tensor = *find_canonical(name);
      SourcePiece source;
      source.piece.tensor = name;
      source.piece.n = canonical_shape(tensor, *model_.sizes_);
      source.piece.lo.assign(source.piece.n.size(), 0);
      source.piece.stride.assign(source.piece.n.size(), 1);
      for (size_t a = source.piece.n.size() - 1; a > 0; --a) {
        source.piece.stride[a - 1] = source.piece.stride[a] * source.piece.n[a];
      }
      for (int64_t l = 0; l < (tensor.per_layer ? model_.config_.num_hidden_layers : 1); ++l) {
        const std::string key = canonical_key(name, tensor.per_layer ? l : -1);
        StoredTensor stored;
        stored.name = key;
        stored.dtype = dtype;
        stored.shape = source.piece.n;
        stored.offset_bytes = offset;
        offset += stored.num_bytes();
        source.tensor = static_cast<int>(model_.checkpoint_.tensors.size());
        model_.checkpoint_.tensors.push_back(std::move(stored));
        model_.pieces_[key].push_back(source);
      }
    }
    order_keys();
    return std::move(model_);
  }

 private:
  void read_description(const OpenOptions& options) {
    Checkpoint& checkpoint = model_.checkpoint_;
    if (!options.family_file.empty()) {
      const std::string text = read_text_file(options.family_file, 1 << 20);
      model_.user_family_ = UserFamily::parse(text, options.family_file.string());
    }
    if (checkpoint.format == "ft") {
      model_.config_ = read_ft_config(checkpoint);
      ft_rules_ = ft_rules(model_.config_);
      rules_ = ft_rules_;
      drops_ = ft_drops();
      model_.family_ = find_family_by_name(model_.config_.family);
      if (model_.user_family_ && model_.user_family_->family().name == model_.config_.family) {
        model_.family_ = &model_.user_family_->family();
      }
      if (model_.family_ == nullptr) {
        throw_invalid(
            where_,
            "config.ini names the unknown family '" + printable(model_.config_.family) + "'",
            "give its description with --family-file");
      }
      return;
    }
    if (checkpoint.format == "export") {
      model_.config_ = read_export_config(checkpoint);
      is_packed_ = matrix_layout_of(checkpoint) == formats::MatrixLayout::kPanels16;
      quantization_ = quantization_of(checkpoint).value_or(kernels::Quantization{});
      export_rules_ = rank_layout(model_.config_, true, true);
      rules_ = export_rules_;
      model_.family_ = find_family_by_name(model_.config_.family);
      if (model_.user_family_ && model_.user_family_->family().name == model_.config_.family) {
        model_.family_ = &model_.user_family_->family();
      }
      // Running needs no family, only writing it for Hugging Face does.
      if (model_.family_ == nullptr) model_.family_ = &megatron_family();
      has_every_rank_ = true;
      return;
    }
    if (checkpoint.megatron != nullptr) {
      const MegatronDescription found =
          read_megatron_config(checkpoint, options.settings, options.keep_vocab_padding);
      model_.config_ = found.config;
      model_.megatron_version_ = found.version;
      megatron_rules_ = std::make_unique<MegatronRules>(found.config, checkpoint.megatron->dialect,
                                                        found.version);
      rules_ = megatron_rules_->rules();
      drops_ = megatron_rules_->drops();
      model_.family_ = find_family_by_name(model_.config_.family);
      if (model_.family_ == nullptr) model_.family_ = &megatron_family();
      has_every_rank_ = true;
      return;
    }
    const auto text = checkpoint.texts.find("config.json");
    if (text == checkpoint.texts.end()) {
      throw_invalid(where_, "config.json is missing", "copy it from where the model came from");
    }
    const std::string name = where_ + ": config.json";
    const auto json = formats::parse_json(text->second, name);
    model_.family_ = find_family(json);
    if (model_.user_family_ && answers(model_.user_family_->family(), json)) {
      model_.family_ = &model_.user_family_->family();
    }
    if (model_.family_ == nullptr) refuse_family(json, name);
    model_.config_ = read_config(*model_.family_, json, name);
    rules_ = model_.family_->tensors;
    drops_ = model_.family_->drops;
    prefix_ = model_.family_->prefix;
  }

  static bool answers(const Family& family, const nlohmann::ordered_json& json) {
    const auto has = [](std::span<const std::string_view> names, const nlohmann::ordered_json& v) {
      return v.is_string() &&
             std::find(names.begin(), names.end(), v.get<std::string>()) != names.end();
    };
    if (json.contains("architectures") && json["architectures"].is_array()) {
      for (const auto& item : json["architectures"]) {
        if (has(family.architectures, item)) return true;
      }
    }
    return json.contains("model_type") && has(family.model_types, json["model_type"]);
  }

  [[noreturn]] static void refuse_family(const nlohmann::ordered_json& json,
                                         const std::string& where) {
    std::string found = "no architecture";
    if (json.contains("architectures")) found = json["architectures"].dump();
    if (json.contains("model_type")) found += ", model_type " + json["model_type"].dump();
    std::string known;
    for (const Family& family : family_table()) {
      known += (known.empty() ? "" : ", ") + std::string(family.name);
    }
    throw_invalid(where, "unknown model family (" + printable(found) + ")",
                  "llmctl knows " + known + "; describe others with --family-file");
  }

  struct Rule {
    const TensorRule* rule;
    Layout layout;
  };

  void index_rules() {
    const ModelConfig& c = model_.config_;
    for (const std::string_view name : expected_canonical(c)) expected_.emplace_back(name);
    for (const TensorRule& rule : rules_) {
      Layout layout = parse_layout(rule.layout);
      by_name_[std::string(rule.name)].push_back({&rule, std::move(layout)});
    }
  }

  bool is_expected(const std::string& name) const {
    return std::find(expected_.begin(), expected_.end(), name) != expected_.end() ||
           find_canonical(name)->auxiliary || name == "head" || name == "head_narrow";
  }

  void map_tensors() {
    // The last stage of an export has the embedding again when it is the head, too.
    const bool by_stage = model_.checkpoint_.format == "export";
    std::set<std::tuple<std::string, int, int>> seen;
    const std::vector<StoredTensor>& tensors = model_.checkpoint_.tensors;
    for (size_t i = 0; i < tensors.size(); ++i) {
      const StoredTensor& tensor = tensors[i];
      if (!seen.insert({tensor.name, tensor.tp_rank, by_stage ? tensor.pp_rank : -1}).second) {
        throw_invalid(where_, stored_name(tensor) + " is there twice");
      }
      if (!map_tensor(static_cast<int>(i), tensor, "") &&
          !map_tensor(static_cast<int>(i), tensor, prefix_)) {
        refuse_unknown(tensor);
      }
    }
    for (auto& [file, matrices] : packed_) {
      formats::CheckpointFile& described = model_.checkpoint_.files[static_cast<size_t>(file)];
      described.decoder = std::make_shared<PanelFile>(described, std::move(matrices));
    }
  }

  bool map_tensor(int index, const StoredTensor& tensor, std::string_view prefix) {
    const NormalName name = normalise(std::string(prefix) + tensor.name);
    for (const DropRule& drop : drops_) {
      if (drop.name == name.text) {
        model_.dropped_.push_back({tensor.name, std::string(drop.rule)});
        return true;
      }
    }
    const auto it = by_name_.find(name.text);
    if (it == by_name_.end()) return false;
    const Rule* rule = choose(it->second);
    if (rule == nullptr) refuse_unexpected(tensor, it->second.front());
    if (name.layer >= model_.config_.num_hidden_layers) {
      throw_invalid(where_, stored_name(tensor) + ": the model has only " +
                                std::to_string(model_.config_.num_hidden_layers) + " layers");
    }
    if (is_packed_) unpack(model_.checkpoint_.tensors[static_cast<size_t>(index)], *rule);
    add_pieces(index, tensor, *rule, name.layer);
    return true;
  }

  /// The row whose canonical tensors the architecture has (rows may share a stored name).
  const Rule* choose(const std::vector<Rule>& rules) const {
    for (const Rule& rule : rules) {
      const std::vector<std::string> names = rule.layout.tensors();
      if (std::all_of(names.begin(), names.end(),
                      [&](const std::string& name) { return is_expected(name); })) {
        const bool narrow = model_.config_.embed_dim() != model_.config_.hidden_size;
        if (names.front() == "head" && narrow && rules.size() > 1) continue;
        return &rule;
      }
    }
    return nullptr;
  }

  /// A matrix of panels is from here on what its decoder makes of it: rows.
  void unpack(StoredTensor& tensor, const Rule& rule) {
    BindOptions bind;
    bind.tp = model_.checkpoint_.tensor_parallel_size;
    bind.rank = tensor.tp_rank;
    const Shape shape = bind_layout(rule.layout, *model_.sizes_, bind).shape;
    if (shape.size() != 2) return;
    if (quantization_ && is_quantizable(rule.rule->name)) return unpack_quantized(tensor, shape);
    if (!kernels::has_panels(tensor.dtype) || tensor.shape != panel_shape(tensor.dtype, shape)) {
      throw_invalid(where_ + ": " + stored_name(tensor),
                    "panels of a matrix " + shape_text(shape) + " expected, the file has " +
                        std::string(dtype_name(tensor.dtype)) + " " + shape_text(tensor.shape),
                    "config and weights must be of the same model");
    }
    packed_[tensor.file][tensor.offset_bytes] = {
        tensor.dtype, shape[0], shape[1], {}, tensor.offset_bytes};
    tensor.shape = shape;
  }

  /// The values that the integers stand for, as F32, at a place behind the end of the file.
  void unpack_quantized(StoredTensor& tensor, const Shape& shape) {
    const bool fits = kernels::can_quantize(quantization_, shape[1]);
    const Shape expected = fits ? quantized_shape(quantization_, shape) : Shape{};
    if (!fits || tensor.dtype != DType::U8 || tensor.shape != expected) {
      throw_invalid(where_ + ": " + stored_name(tensor),
                    quantization_text(quantization_) + " of a matrix " + shape_text(shape) +
                        " expected, the file has " + std::string(dtype_name(tensor.dtype)) + " " +
                        shape_text(tensor.shape),
                    "config and weights must be of the same model");
    }
    const formats::CheckpointFile& file =
        model_.checkpoint_.files[static_cast<size_t>(tensor.file)];
    constexpr uint64_t kAlignment = 4096;
    uint64_t& end =
        rows_end_
            .try_emplace(tensor.file, file.decoder ? file.decoder->size_bytes() : file.size_bytes)
            .first->second;
    const uint64_t start = (end + kAlignment - 1) / kAlignment * kAlignment;
    packed_[tensor.file][start] = {DType::F32, shape[0], shape[1], quantization_,
                                   tensor.offset_bytes};
    tensor.dtype = DType::F32;
    tensor.shape = shape;
    tensor.offset_bytes = start;
    end = start + tensor.num_bytes();
  }

  void add_pieces(int index, const StoredTensor& tensor, const Rule& rule, int64_t layer) {
    const std::string where = where_ + ": " + stored_name(tensor);
    if (!dtype_info(tensor.dtype).is_float) {
      throw_invalid(where, "dtype " + std::string(dtype_name(tensor.dtype)) +
                               " cannot hold a weight of this family");
    }
    BindOptions bind;
    const bool split = rule.layout.uses_tensor_parallel() || has_every_rank_;
    if (split != (tensor.tp_rank >= 0)) {
      throw_invalid(where, split ? "a rank is expected in its name, and there is none"
                                 : "it has a rank in its name, and is not split over ranks");
    }
    if (split) {
      bind.tp = model_.checkpoint_.tensor_parallel_size;
      bind.rank = tensor.tp_rank;
    }
    bind.stored_shape = &tensor.shape;
    bind.stored_strides = &tensor.strides;
    BoundLayout bound;
    try {
      bound = bind_layout(rule.layout, *model_.sizes_, bind);
    } catch (Error& error) {
      throw_invalid(where, error.where().empty() ? error.message() : std::string(error.what()),
                    "config and weights must be of the same model");
    }
    if (!rule.rule->plus.empty()) {
      derived_.insert(tensor.name);
      model_.dropped_.push_back({tensor.name, "derived from other tensors"});
      return;
    }
    for (Piece& piece : bound.pieces) {
      const std::string key = canonical_key(piece.tensor, layer);
      model_.pieces_[key].push_back({index, std::move(piece), rule.rule->step});
    }
  }

  /// A name is only a misspelling of one that is not there, and of one that it is close to.
  [[noreturn]] void refuse_unknown(const StoredTensor& tensor) const {
    std::string nearest;
    const NormalName name = normalise(tensor.name);
    size_t best = 1 + std::min<size_t>(7, name.text.size() / 8);
    if (name.text.size() < 200) {
      for (const auto& [text, rules] : by_name_) {
        const size_t d = distance(name.text, text);
        if (d >= best) continue;
        const std::string candidate = with_layer(text, std::max<int64_t>(name.layer, 0));
        const auto& tensors = model_.checkpoint_.tensors;
        if (std::any_of(tensors.begin(), tensors.end(),
                        [&](const StoredTensor& other) { return other.name == candidate; })) {
          continue;
        }
        best = d;
        nearest = candidate;
      }
    }
    throw_invalid(where_,
                  stored_name(tensor) + " is not part of the " + std::string(model_.family_->name) +
                      " family",
                  nearest.empty() ? "remove it, or describe other models with --family-file"
                                  : "did you mean '" + nearest + "'?");
  }

  [[noreturn]] void refuse_unexpected(const StoredTensor& tensor, const Rule& rule) const {
    throw_invalid(where_,
                  stored_name(tensor) + " (" + shape_text(tensor.shape) +
                      ") is in the checkpoint, but the config describes a model without '" +
                      rule.layout.tensors().front() + "'",
                  "correct the config, or remove the tensor");
  }

  bool same_bytes(const SourcePiece& a, const SourcePiece& b) const {
    const StoredTensor& x = model_.checkpoint_.tensors[static_cast<size_t>(a.tensor)];
    const StoredTensor& y = model_.checkpoint_.tensors[static_cast<size_t>(b.tensor)];
    if (x.file == y.file && x.offset_bytes == y.offset_bytes && x.strides == y.strides) return true;
    if (x.dtype != y.dtype || x.num_bytes() != y.num_bytes()) return false;
    if (!x.is_contiguous() || !y.is_contiguous()) return false;
    const formats::TensorFile fx(model_.checkpoint_.files[static_cast<size_t>(x.file)]);
    const formats::TensorFile fy(model_.checkpoint_.files[static_cast<size_t>(y.file)]);
    std::vector<std::byte> bx(1 << 20), by(1 << 20);
    for (uint64_t done = 0; done < x.num_bytes(); done += bx.size()) {
      const size_t n = static_cast<size_t>(std::min<uint64_t>(bx.size(), x.num_bytes() - done));
      fx.read_at(std::span(bx).first(n), x.offset_bytes + done);
      fy.read_at(std::span(by).first(n), y.offset_bytes + done);
      if (std::memcmp(bx.data(), by.data(), n) != 0) return false;
    }
    return true;
  }

  /// Decides whether the head is the embedding. `expected_canonical` believed the config.
  void settle_head() {
    ModelConfig& c = model_.config_;
    for (const auto& [head_name, embed_name] :
         {std::pair<std::string, std::string>{"head", "embed"}, {"head_narrow", "embed_narrow"}}) {
      const auto head = model_.pieces_.find(head_name);
      const auto embed = model_.pieces_.find(embed_name);
      if (head == model_.pieces_.end()) continue;
      const bool ft = model_.checkpoint_.format == "ft";
      if (embed == model_.pieces_.end()) {
        // Of two names for one tensor, some writers keep the head's.
        if (!c.tie_word_embeddings || ft) continue;
        std::vector<SourcePiece> pieces = std::move(head->second);
        for (SourcePiece& piece : pieces) piece.piece.tensor = embed_name;
        model_.pieces_.erase(head);
        model_.pieces_[embed_name] = std::move(pieces);
        return;
      }
      if (!c.tie_word_embeddings && !ft) return;
      const std::string stored =
          model_.checkpoint_.tensors[static_cast<size_t>(head->second.front().tensor)].name;
      if (same_bytes(head->second.front(), embed->second.front())) {
        c.tie_word_embeddings = true;
        model_.dropped_.push_back({stored, "tied head, equal to the embedding"});
        model_.pieces_.erase(head);
      } else {
        if (c.tie_word_embeddings && !ft) {
          model_.notes_.push_back("'" + stored +
                                  "' differs from the embedding although the config ties them: "
                                  "it is kept as a head of its own");
        }
        c.tie_word_embeddings = false;
      }
      expected_.clear();
      for (const std::string_view name : expected_canonical(c)) expected_.emplace_back(name);
      return;
    }
  }

  void check_complete() const {
    for (const std::string& name : expected_) {
      const CanonicalTensor& tensor = *find_canonical(name);
      const Shape shape = canonical_shape(tensor, *model_.sizes_);
      const int64_t layers = tensor.per_layer ? model_.config_.num_hidden_layers : 1;
      for (int64_t l = 0; l < layers; ++l) {
        const std::string key = canonical_key(name, tensor.per_layer ? l : -1);
        const auto it = model_.pieces_.find(key);
        if (it == model_.pieces_.end()) refuse_missing(name, tensor.per_layer ? l : -1);
        std::vector<IndexBox> rest = {IndexBox::whole(shape)};
        for (const SourcePiece& piece : it->second)
          rest = subtract(rest, IndexBox::of(piece.piece));
        if (!rest.empty()) {
          throw_invalid(where_,
                        "'" + key + "' is stored only in part: nothing holds indices " +
                            rest.front().text() + " of " + shape_text(shape),
                        "a shard is missing");
        }
      }
    }
  }

  /// What can be computed from other tensors is there all the same, or the tree is damaged.
  void check_derived() const {
    for (const TensorRule& rule : rules_) {
      if (rule.plus.empty()) continue;
      for (int64_t l = 0; l < model_.config_.num_hidden_layers; ++l) {
        const std::string name = with_layer(rule.name, l);
        if (derived_.count(name) != 0) continue;
        throw_invalid(where_, "tensor '" + name + "' is missing",
                      "the checkpoint is incomplete; fetch it again");
      }
    }
  }

  [[noreturn]] void refuse_missing(const std::string& name, int64_t layer) const {
    std::string stored = "canonical tensor '" + name + "'";
    for (const TensorRule& rule : rules_) {
      const std::vector<std::string> names = parse_layout(rule.layout).tensors();
      if (rule.plus.empty() && std::find(names.begin(), names.end(), name) != names.end()) {
        stored = "tensor '" + with_layer(rule.name, layer) + "'";
        break;
      }
    }
    const bool head = name == "head" || name == "head_narrow";
    throw_invalid(where_, stored + " is missing",
                  head ? "if the head is the embedding, set tie_word_embeddings to true"
                       : "the checkpoint is incomplete; fetch it again");
  }

  void order_keys() {
    for (const CanonicalTensor& tensor : canonical_table()) {
      if (tensor.per_layer) continue;
      const bool after = tensor.name.starts_with("final") || tensor.name.starts_with("head") ||
                         tensor.name == "project_out";
      if (!after && model_.has(std::string(tensor.name))) {
        model_.keys_.emplace_back(tensor.name);
      }
    }
    for (int64_t l = 0; l < model_.config_.num_hidden_layers; ++l) {
      for (const CanonicalTensor& tensor : canonical_table()) {
        if (!tensor.per_layer) continue;
        const std::string key = canonical_key(tensor.name, l);
        if (model_.has(key)) model_.keys_.push_back(key);
      }
    }
    for (const CanonicalTensor& tensor : canonical_table()) {
      const std::string key(tensor.name);
      if (!tensor.per_layer && model_.has(key) &&
          std::find(model_.keys_.begin(), model_.keys_.end(), key) == model_.keys_.end()) {
        model_.keys_.push_back(key);
      }
    }
  }

  Model model_;
  bool is_packed_ = false;                                  // matrices are stored as panels
  kernels::Quantization quantization_;                      // of the matrices
  std::map<int, std::map<uint64_t, PackedMatrix>> packed_;  // by file, then offset
  std::map<int, uint64_t> rows_end_;  // by file, behind the rows of quantised matrices
  bool has_every_rank_ = false;       // replicated tensors are stored once per rank
  std::string where_;
  std::vector<TensorRule> ft_rules_, export_rules_;
  std::unique_ptr<MegatronRules> megatron_rules_;
  std::span<const TensorRule> rules_;
  std::span<const DropRule> drops_;
  std::string_view prefix_;
  std::unordered_map<std::string, std::vector<Rule>> by_name_;
  std::vector<std::string> expected_;
  std::set<std::string> derived_;  // names of stored tensors that other tensors determine
};

Model open_model(Checkpoint checkpoint, const OpenOptions& options) {
  return ModelBuilder(std::move(checkpoint), options).build();
}

Model describe_model(const Family& family, const ModelConfig& config, DType dtype,
                     const std::string& origin) {
  return ModelBuilder(family, config).build_canonical(dtype, origin);
}

Model open_model(const std::filesystem::path& path, const OpenOptions& options) {
  return open_model(formats::read_checkpoint(path), options);
}

uint64_t count_parameters(const Model& model) {
  uint64_t count = 0;
  for (const std::string& key : model.keys()) {
    const Shape shape = canonical_shape(Model::canonical_of(key), model.sizes());
    count += static_cast<uint64_t>(checked_num_elements(shape).value_or(0));
  }
  return count;
}

}  // namespace llmctl::reshard
