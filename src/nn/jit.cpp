// The part of libtorch that no Rust crate wraps: TorchScript files whose floats are widened, and a network traced once, frozen (batch normalisation folded into the
// convolutions) and turned over to oneDNN (weights laid out for the processor, activation fused into the convolution).
// Below them what GPUs need: libtorch's CUDA library opened at run time, streams, memory formats, transfers and precision.
// No header of CUDA is used: c10 asks whatever library has registered itself.
// src/nn/jit.rs is its only caller. Every function returns null, or an error's words for hilum_jit_free_words.

#include <cstring>
#include <dlfcn.h>
#include <exception>
#include <istream>
#include <streambuf>
#include <string>
#include <vector>

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/jit/passes/fixup_trace_scope_blocks.h>
#include <torch/csrc/jit/passes/normalize_ops.h>
#include <torch/csrc/jit/serialization/import.h>

using at::Tensor;
using torch::jit::Module;

// winograd.cpp
int64_t hilum_use_winograd(torch::jit::Graph &frozen, const torch::jit::Graph &recorded);

static char *words_of(const char *words) { return strdup(words ? words : "without a message"); }

// Bytes in memory as a stream, without a copy: files may have gigabytes.
struct BytesBuffer : std::streambuf {
    BytesBuffer(const char *bytes, size_t n_bytes) {
        auto start = const_cast<char *>(bytes); // only read from
        setg(start, start, start + n_bytes);
    }
    pos_type seekoff(off_type offset, std::ios_base::seekdir from, std::ios_base::openmode) override {
        auto base = from == std::ios_base::beg ? eback() : from == std::ios_base::cur ? gptr() : egptr();
        if (offset < eback() - base || offset > egptr() - base) return pos_type(off_type(-1));
        setg(eback(), base + offset, egptr());
        return pos_type(gptr() - eback());
    }
    pos_type seekpos(pos_type position, std::ios_base::openmode mode) override {
        return seekoff(off_type(position), std::ios_base::beg, mode);
    }
};

// Images and their weights with the channels innermost, as the tensor cores of GPUs take them; other tensors as they are.
static Tensor channels_last(const Tensor &tensor) {
    switch (tensor.dim()) {
    case 4: return tensor.contiguous(at::MemoryFormat::ChannelsLast);
    case 5: return tensor.contiguous(at::MemoryFormat::ChannelsLast3d);
    default: return tensor;
    }
}

static c10::Device cuda_device(int device_idx) { return c10::Device(c10::kCUDA, c10::DeviceIndex(device_idx)); }

#define GUARDED(code)                                   \
    try {                                               \
        code;                                           \
        return nullptr;                                 \
    } catch (const c10::Error &error) {                 \
        return words_of(error.what_without_backtrace()); \
    } catch (const std::exception &error) {             \
        return words_of(error.what());                  \
    } catch (...) {                                     \
        return words_of(nullptr);                       \
    }

extern "C" {

// Reads a TorchScript file; `device_idx` below 0 is the processor. `Module::to` would turn whole numbers into floats too.
char *hilum_jit_load(const char *bytes, size_t n_bytes, int device_idx, Module **loaded) {
    GUARDED({
        BytesBuffer buffer(bytes, n_bytes);
        std::istream stream(&buffer);
        auto device = device_idx < 0 ? c10::Device(c10::kCPU) : c10::Device(c10::kCUDA, c10::DeviceIndex(device_idx));
        auto module = torch::jit::load(stream, device);
        module.eval();
        c10::NoGradGuard guard;
        auto widen = [](const std::string &name, Tensor tensor) {
            if (!tensor.is_floating_point()) return;
            if (!at::isfinite(tensor).all().item<bool>()) throw std::runtime_error("`" + name + "` holds numbers that are not finite");
            if (tensor.scalar_type() != at::kFloat) tensor.set_data(tensor.to(at::kFloat));
        };
        for (const auto &parameter : module.named_parameters()) widen(parameter.name, parameter.value);
        for (const auto &buffer : module.named_buffers()) widen(buffer.name, buffer.value);
        *loaded = new Module(std::move(module));
    })
}

// Begins to record what happens to the inputs on this thread.
char *hilum_jit_begin(Tensor *const *inputs, size_t n_inputs, Module **recorded) {
    GUARDED({
        if (torch::jit::tracer::isTracing()) throw std::runtime_error("another recording is under way");
        auto module = Module("Hilum");
        auto state = std::make_shared<torch::jit::tracer::TracingState>();
        state->graph->insertInput(0, "self")->setType(module._ivalue()->type());
        for (size_t idx = 0; idx < n_inputs; ++idx) {
            auto value = state->graph->addInput();
            value->setType(torch::jit::TensorType::get());
            state->setValue(*inputs[idx], value);
        }
        *recorded = new Module(module);
        // Last: what fails before leaves nothing that records.
        torch::jit::tracer::setTracingState(state);
    })
}

// Ends the recording: `forward` of the module gives these outputs as a tuple.
char *hilum_jit_end(Module *recorded, Tensor *const *outputs, size_t n_outputs) {
    GUARDED({
        auto state = torch::jit::tracer::getTracingState();
        if (!state) throw std::runtime_error("no recording is under way");
        std::vector<torch::jit::Value *> values;
        for (size_t idx = 0; idx < n_outputs; ++idx) values.push_back(state->getOutput(*outputs[idx], idx));
        auto tuple = state->graph->insertNode(state->graph->createTuple(values));
        state->graph->registerOutput(tuple->output());
        torch::jit::FixupTraceScopeBlocks(state->graph, recorded);
        torch::jit::NormalizeOps(state->graph);
        torch::jit::tracer::setTracingState(nullptr);
        auto function = recorded->_ivalue()->compilation_unit()->create_function("forward", state->graph);
        recorded->type()->addMethod(function);
    })
}

void hilum_jit_abandon() { torch::jit::tracer::setTracingState(nullptr); }

// `n_winograd` is how many convolutions winograd.cpp computes.
char *hilum_jit_optimise(const Module *module, Module **optimised, int64_t *n_winograd) {
    GUARDED({
        c10::NoGradGuard guard;
        auto frozen = torch::jit::freeze(*module);
        *n_winograd = hilum_use_winograd(*frozen.get_method("forward").graph(), *module->get_method("forward").graph());
        *optimised = new Module(torch::jit::optimize_for_inference(frozen));
    })
}

// Runs `forward`. `outputs` has room for `capacity` tensors; `n_outputs` is how many there are.
char *hilum_jit_forward(Module *module, Tensor *const *inputs, size_t n_inputs, Tensor **outputs, size_t capacity,
                        size_t *n_outputs) {
    GUARDED({
        std::vector<torch::jit::IValue> arguments;
        for (size_t idx = 0; idx < n_inputs; ++idx) arguments.emplace_back(*inputs[idx]);
        auto answer = module->forward(std::move(arguments));
        std::vector<Tensor> tensors;
        if (answer.isTensor()) {
            tensors.push_back(answer.toTensor());
        } else {
            for (const auto &element : answer.toTupleRef().elements()) tensors.push_back(element.toTensor());
        }
        if (tensors.size() > capacity) throw std::runtime_error("more outputs than there is room for");
        *n_outputs = tensors.size();
        for (size_t idx = 0; idx < tensors.size(); ++idx) outputs[idx] = new Tensor(std::move(tensors[idx]));
    })
}

// Opens a shared library for good, its symbols for all: libtorch_cuda.so registers itself with libtorch_cpu.so while it is opened.
char *hilum_open_library(const char *path) {
    GUARDED({
        if (!dlopen(path, RTLD_NOW | RTLD_GLOBAL)) throw std::runtime_error(dlerror());
    })
}

// The file of the libtorch_cpu.so in use, as the loader knows it; null when it does not.
const char *hilum_libtorch_file() {
    Dl_info found;
    auto symbol = reinterpret_cast<const void *>(&at::globalContext);
    return dladdr(symbol, &found) ? found.dli_fname : nullptr;
}

// How many CUDA devices there are, and whether libtorch sees the library that says so. Fails where none is opened.
char *hilum_cuda_devices(int *count, bool *is_seen) {
    GUARDED({
        *count = c10::impl::VirtualGuardImpl(c10::kCUDA).deviceCount();
        *is_seen = at::globalContext().hasCUDA();
    })
}

// The same input shall give the same output: no algorithm of cuDNN's that adds up in any order, none chosen by a race.
char *hilum_cuda_repeatable() {
    GUARDED({
        at::globalContext().setDeterministicCuDNN(true);
        at::globalContext().setBenchmarkCuDNN(false);
    })
}

// Whether multiplications and convolutions of 32-bit floats on GPUs may round their factors to TF32; for the whole process.
char *hilum_cuda_allow_tf32(bool is_allowed) {
    GUARDED({
        at::globalContext().setAllowTF32CuBLAS(is_allowed);
        at::globalContext().setAllowTF32CuDNN(is_allowed);
    })
}

// What this thread does on this device from now on goes to a stream of its own.
char *hilum_cuda_own_stream(int device_idx) {
    GUARDED({
        c10::impl::VirtualGuardImpl guard(c10::kCUDA);
        auto device = cuda_device(device_idx);
        guard.setDevice(device);
        guard.exchangeStream(guard.getStreamFromGlobalPool(device));
    })
}

// A copy on a GPU, by way of pinned memory so that the processor need not wait, with the channels innermost. libtorch
// keeps the pinned memory until the transfer is done.
char *hilum_cuda_upload(const Tensor *tensor, int device_idx, Tensor **uploaded) {
    GUARDED({
        auto on_device = tensor->pin_memory().to(cuda_device(device_idx), tensor->scalar_type(), /*non_blocking=*/true);
        *uploaded = new Tensor(channels_last(on_device));
    })
}

// The same numbers in another order of memory, for everybody who holds the tensor.
char *hilum_channels_last(Tensor *tensor) {
    GUARDED({
        c10::NoGradGuard guard;
        tensor->set_data(channels_last(*tensor));
    })
}

// Mixed precision on this thread: what gains by 16-bit floats is computed with them, the rest with 32 bits. 0 ends it.
char *hilum_autocast(bool on_cuda, int kind) {
    GUARDED({
        auto device = on_cuda ? at::kCUDA : at::kCPU;
        if (kind != 0) at::autocast::set_autocast_dtype(device, kind == 1 ? at::kHalf : at::kBFloat16);
        at::autocast::set_autocast_enabled(device, kind != 0);
        if (kind == 0) at::autocast::clear_cache();
    })
}

void hilum_jit_free(Module *module) { delete module; }

void hilum_jit_free_words(char *words) { free(words); }
}
