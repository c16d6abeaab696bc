// The part of libtorch that no Rust crate wraps: TorchScript files whose floats are widened, and a network traced once, frozen (batch normalisation folded into the
// convolutions) and turned over to oneDNN (weights laid out for the processor, activation fused into the convolution).
// src/nn/jit.rs is its only caller. Every function returns null, or an error's words for hilum_jit_free_words.

#include <cstring>
#include <exception>
#include <istream>
#include <streambuf>
#include <string>
#include <vector>

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/jit/passes/fixup_trace_scope_blocks.h>
#include <torch/csrc/jit/passes/normalize_ops.h>
#include <torch/csrc/jit/serialization/import.h>

using at::Tensor;
using torch::jit::Module;

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

char *hilum_jit_optimise(const Module *module, Module **optimised) {
    GUARDED({
        auto frozen = torch::jit::freeze(*module);
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

void hilum_jit_free(Module *module) { delete module; }

void hilum_jit_free_words(char *words) { free(words); }
}
