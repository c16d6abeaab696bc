// 3x3 convolutions by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016): 36 multiplications
// where the direct way takes 144. The picture is cut into tiles of 4 x 4 results; a tile's 6 x 6 samples are transformed, multiplied channel by channel
// with the transformed weights as 36 products of matrices (libtorch's), and transformed back. oneDNN, to which libtorch gives all other convolutions, has
// this for 32-bit floats no more. Rounding errors are some 25 times those of the direct way, 1e-5 of the largest result: runner.rs compares every network
// that is optimised with its plain form. src/nn/jit.cpp is the only caller.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/library.h>

using at::Tensor;

namespace {

// Results of a tile, and samples that they are made of: on each side, and in all.
constexpr int64_t TILE = 4, PATCH = TILE + 2, PATCH_AREA = PATCH * PATCH;
// Channels that are computed side by side; the compiler makes of them what the processor has.
constexpr int64_t LANES = 16;
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float))));
// Bytes of transformed samples and results that one thread works on at a time: they should stay in its cache.
constexpr int64_t BLOCK_BYTES = 1536 * 1024;
// Fewest tiles of a block, where there are so many: products of flatter matrices are slow.
constexpr int64_t LEAST_TILES = 48;

#define FOR_EVERY_PROCESSOR __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#define INLINE static inline __attribute__((always_inline))

// Channels are innermost: a sample's channels lie side by side.
struct Maps {
    int64_t rows, columns, channels;

    int64_t tile_rows() const { return (rows + TILE - 1) / TILE; }
    int64_t tile_columns() const { return (columns + TILE - 1) / TILE; }
    int64_t tiles() const { return tile_rows() * tile_columns(); }
    int64_t first_sample(int64_t tile) const { return tile / tiles() * rows * columns * channels; }
    int64_t first_row(int64_t tile) const { return tile % tiles() / tile_columns() * TILE; }
    int64_t first_column(int64_t tile) const { return tile % tiles() % tile_columns() * TILE; }
};

INLINE Lanes read(const float *from) { return *reinterpret_cast<const Lanes *>(from); }
INLINE void write(float *to, Lanes lanes) { *reinterpret_cast<Lanes *>(to) = lanes; }

INLINE void transform_samples(const Lanes *d, int step, Lanes *to, int to_step) {
    Lanes even = d[4 * step] - 4.0f * d[2 * step], odd = d[3 * step] - 4.0f * d[step];
    Lanes difference = d[4 * step] - d[2 * step], twice = 2.0f * (d[3 * step] - d[step]);
    to[0] = 4.0f * d[0] - 5.0f * d[2 * step] + d[4 * step];
    to[to_step] = even + odd;
    to[2 * to_step] = even - odd;
    to[3 * to_step] = difference + twice;
    to[4 * to_step] = difference - twice;
    to[5 * to_step] = 4.0f * d[step] - 5.0f * d[3 * step] + d[5 * step];
}

INLINE void transform_products(const Lanes *m, int step, Lanes *to, int to_step) {
    Lanes sum = m[step] + m[2 * step], difference = m[step] - m[2 * step];
    Lanes far_sum = m[3 * step] + m[4 * step], far_difference = m[3 * step] - m[4 * step];
    to[0] = m[0] + sum + far_sum;
    to[to_step] = difference + 2.0f * far_difference;
    to[2 * to_step] = sum + 4.0f * far_sum;
    to[3 * to_step] = difference + 8.0f * far_difference + m[5 * step];
}

// The transformed samples of some tiles: PATCH_AREA matrices of tiles x channels. What lies beyond the picture is 0.
FOR_EVERY_PROCESSOR void transform_input(const float *samples, Maps maps, int64_t first_tile, int64_t n_tiles, float *to) {
    int64_t stride = n_tiles * maps.channels, row_stride = maps.columns * maps.channels;
    for (int64_t idx = 0; idx < n_tiles; ++idx) {
        int64_t tile = first_tile + idx, row0 = maps.first_row(tile) - 1, column0 = maps.first_column(tile) - 1;
        const float *corner = samples + maps.first_sample(tile) + row0 * row_stride + column0 * maps.channels;
        bool inside = row0 >= 0 && column0 >= 0 && row0 + PATCH <= maps.rows && column0 + PATCH <= maps.columns;
        for (int64_t channel = 0; channel < maps.channels; channel += LANES) {
            Lanes patch[PATCH_AREA];
            // Column by column, so that a column's samples are in the processor's registers.
#pragma GCC unroll 6
            for (int64_t c = 0; c < PATCH; ++c) {
                const float *from = corner + c * maps.channels + channel;
                Lanes column[PATCH];
                if (inside) {
#pragma GCC unroll 6
                    for (int64_t r = 0; r < PATCH; ++r) column[r] = read(from + r * row_stride);
                } else {
                    bool is_column = column0 + c >= 0 && column0 + c < maps.columns;
                    for (int64_t r = 0; r < PATCH; ++r) {
                        bool is_there = is_column && row0 + r >= 0 && row0 + r < maps.rows;
                        column[r] = is_there ? read(from + r * row_stride) : Lanes{};
                    }
                }
                transform_samples(column, 1, patch + c, PATCH);
            }
            float *out = to + idx * maps.channels + channel;
#pragma GCC unroll 6
            for (int64_t r = 0; r < PATCH; ++r) {
                Lanes row[PATCH];
                transform_samples(patch + r * PATCH, 1, row, 1);
#pragma GCC unroll 6
                for (int64_t c = 0; c < PATCH; ++c) write(out + (r * PATCH + c) * stride, row[c]);
            }
        }
    }
}

// The results of some tiles, of PATCH_AREA matrices of tiles x channels.
FOR_EVERY_PROCESSOR void transform_output(const float *products, const float *bias, bool with_relu, Maps maps, int64_t first_tile, int64_t n_tiles, float *to) {
    int64_t stride = n_tiles * maps.channels;
    for (int64_t idx = 0; idx < n_tiles; ++idx) {
        int64_t tile = first_tile + idx, row0 = maps.first_row(tile), column0 = maps.first_column(tile);
        int64_t n_rows = std::min(TILE, maps.rows - row0), n_columns = std::min(TILE, maps.columns - column0);
        float *corner = to + maps.first_sample(tile) + (row0 * maps.columns + column0) * maps.channels;
        for (int64_t channel = 0; channel < maps.channels; channel += LANES) {
            const float *from = products + idx * maps.channels + channel;
            Lanes half[TILE * PATCH];
#pragma GCC unroll 6
            for (int64_t c = 0; c < PATCH; ++c) {
                Lanes column[PATCH];
#pragma GCC unroll 6
                for (int64_t r = 0; r < PATCH; ++r) column[r] = read(from + (r * PATCH + c) * stride);
                transform_products(column, 1, half + c, PATCH);
            }
            Lanes added = bias ? read(bias + channel) : Lanes{};
            for (int64_t r = 0; r < n_rows; ++r) {
                Lanes row[TILE];
                transform_products(half + r * PATCH, 1, row, 1);
                for (int64_t c = 0; c < n_columns; ++c) {
                    Lanes result = row[c] + added;
                    if (with_relu) result = result < 0.0f ? Lanes{} : result; // what is no number stays none
                    write(corner + (r * maps.columns + c) * maps.channels + channel, result);
                }
            }
        }
    }
}

// `weights` as transform_weights makes them, `bias` one per output channel or none. n x channels x rows x columns in and out, channels innermost.
Tensor convolution(const Tensor &input, const Tensor &weights, const std::optional<Tensor> &bias, bool with_relu) {
    TORCH_CHECK(input.dim() == 4 && input.numel() > 0 && input.scalar_type() == at::kFloat, "maps of 32-bit floats are expected");
    TORCH_CHECK(weights.dim() == 3 && weights.size(0) == PATCH_AREA && weights.size(1) == input.size(1) && weights.size(2) % LANES == 0
        && input.size(1) % LANES == 0 && weights.is_contiguous() && (!bias || bias->numel() == weights.size(2)), "the weights are not those of these maps");
    auto samples = input.contiguous(at::MemoryFormat::ChannelsLast);
    Maps from{samples.size(2), samples.size(3), samples.size(1)}, to{from.rows, from.columns, weights.size(2)};
    auto results = at::empty({samples.size(0), to.channels, to.rows, to.columns}, samples.options(), at::MemoryFormat::ChannelsLast);
    int64_t n_tiles = samples.size(0) * from.tiles(), n_threads = at::get_num_threads();
    int64_t that_fit = BLOCK_BYTES / (PATCH_AREA * int64_t(sizeof(float)) * (from.channels + to.channels));
    int64_t block = std::min(std::max(that_fit, LEAST_TILES), (n_tiles + n_threads - 1) / n_threads);
    auto in = samples.const_data_ptr<float>(), added = bias ? bias->const_data_ptr<float>() : nullptr;
    auto out = results.mutable_data_ptr<float>();
    at::parallel_for(0, (n_tiles + block - 1) / block, 1, [&](int64_t begin, int64_t end) {
        at::AutoDispatchBelowADInplaceOrView without_gradients;
        auto transformed = at::empty({PATCH_AREA * block * from.channels}, samples.options());
        auto products = at::empty({PATCH_AREA * block * to.channels}, samples.options());
        for (int64_t idx = begin; idx < end; ++idx) {
            int64_t first = idx * block, count = std::min(block, n_tiles - first);
            auto matrices = [&](const Tensor &room, int64_t channels) {
                return room.as_strided({PATCH_AREA, count, channels}, {count * channels, channels, 1});
            };
            auto factors = matrices(transformed, from.channels), sums = matrices(products, to.channels);
            transform_input(in, from, first, count, factors.mutable_data_ptr<float>());
            at::bmm_out(sums, factors, weights);
            transform_output(sums.const_data_ptr<float>(), added, with_relu, to, first, count, out);
        }
    });
    return results;
}

TORCH_LIBRARY(hilum, library) {
    library.def("winograd(Tensor input, Tensor weights, Tensor? bias, bool with_relu) -> Tensor", convolution);
}

// Output channels x input channels x 3 x 3 to PATCH_AREA x input channels x output channels.
Tensor transform_weights(const Tensor &weights) {
    auto rows = at::tensor({6, 0, 0, -4, -4, -4, -4, 4, -4, 1, 2, 4, 1, -2, 4, 0, 0, 24}, at::kDouble).view({PATCH, 3}).div(24);
    auto transformed = at::einsum("ia,ocab,jb->ijco", {rows, weights.to(at::kDouble), rows});
    return transformed.reshape({PATCH_AREA, weights.size(1), weights.size(0)}).to(at::kFloat).contiguous();
}

using torch::jit::Node;

// Fewest samples of a map for which the larger weights pay, and the share of a network's multiplications from which on changing between the
// layouts of two libraries pays.
constexpr int64_t LEAST_SAMPLES = 28 * 28;
constexpr double LEAST_SHARE = 0.5;

bool is_all(const torch::jit::Value *list, int64_t expected) {
    auto values = torch::jit::toIValue(list);
    if (!values || !values->isIntList()) return false;
    auto found = values->toIntVector();
    return !found.empty() && std::all_of(found.begin(), found.end(), [&](int64_t value) { return value == expected; });
}

std::optional<Tensor> constant(const torch::jit::Value *value) {
    auto found = torch::jit::toIValue(value);
    return found && found->isTensor() ? std::optional(found->toTensor()) : std::nullopt;
}

bool is_convolution(const Node *node) { return node->kind() == at::aten::conv2d || node->kind() == at::aten::_convolution; }

// Rows times columns of what the convolutions of a recording gave, in its order; 0 where that is not known or not two-dimensional.
std::vector<int64_t> result_samples(const torch::jit::Graph &recorded) {
    std::vector<int64_t> samples;
    for (const Node *node : recorded.nodes()) {
        if (!is_convolution(node)) continue;
        auto type = node->output()->type()->cast<c10::TensorType>();
        auto sizes = type ? type->sizes().concrete_sizes() : std::nullopt;
        samples.push_back(sizes && sizes->size() == 4 ? (*sizes)[2] * (*sizes)[3] : 0);
    }
    return samples;
}

// Inputs of aten::conv2d: input, weight, bias, stride, padding, dilation, groups; of aten::_convolution: input, weight, bias, stride, padding, dilation, transposed,
// output_padding, groups, ...
bool is_fit(const Node *node, const Tensor &weights, int64_t samples) {
    bool is_plain = node->kind() == at::aten::conv2d;
    auto groups = torch::jit::toIValue(node->input(is_plain ? 6 : 8));
    bool is_transposed = !is_plain && torch::jit::constant_as<bool>(node->input(6)).value_or(true);
    auto bias = torch::jit::toIValue(node->input(2));
    return samples >= LEAST_SAMPLES && weights.scalar_type() == at::kFloat && weights.size(2) == 3 && weights.size(3) == 3
        && weights.size(0) % LANES == 0 && weights.size(1) % LANES == 0 && is_all(node->input(3), 1) && is_all(node->input(4), 1)
        && is_all(node->input(5), 1) && groups && groups->toInt() == 1 && !is_transposed && bias && (bias->isNone() || bias->isTensor());
}

void replace(torch::jit::Graph &graph, Node *node) {
    torch::jit::WithInsertPoint before(node);
    auto weights = graph.insertConstant(transform_weights(*constant(node->input(1))));
    auto result = node->output();
    Node *relu = result->uses().size() == 1 ? result->uses()[0].user : nullptr;
    bool with_relu = relu && (relu->kind() == at::aten::relu || relu->kind() == at::aten::relu_);
    auto made = graph.insert(c10::Symbol::fromQualString("hilum::winograd"), {node->input(0), weights, node->input(2), graph.insertConstant(with_relu)});
    (with_relu ? relu->output() : result)->replaceAllUsesWith(made);
    if (with_relu) relu->destroy();
    node->destroy();
}

} // namespace

// Replaces the convolutions of a frozen graph that gain by it, when they are most of its work; returns how many. `recorded` is the graph before it was
// frozen: it alone knows the sizes.
int64_t hilum_use_winograd(torch::jit::Graph &frozen, const torch::jit::Graph &recorded) {
    auto samples = result_samples(recorded);
    std::vector<Node *> convolutions, fit;
    for (Node *node : frozen.nodes()) {
        if (is_convolution(node)) convolutions.push_back(node);
    }
    if (convolutions.size() != samples.size()) return 0;
    double all = 0, gaining = 0;
    for (size_t idx = 0; idx < convolutions.size(); ++idx) {
        auto weights = constant(convolutions[idx]->input(1));
        if (!weights || weights->dim() != 4) continue;
        double multiplications = double(samples[idx]) * double(weights->numel());
        all += multiplications;
        if (!is_fit(convolutions[idx], *weights, samples[idx])) continue;
        gaining += multiplications;
        fit.push_back(convolutions[idx]);
    }
    if (gaining < LEAST_SHARE * all) return 0;
    for (Node *node : fit) replace(frozen, node);
    return int64_t(fit.size());
}
