// The border to Python: the only file that knows it. Arrays are checked here, the interpreter lock is released in
// run(), unless the caller knows that the run is over before another thread would have got it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "kernels/common/cpu.h"
#include "kernels/peak/peak.h"
#include "program/program.h"

namespace py = pybind11;

namespace {

using int8d::Builder;
using int8d::Program;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;  // another dtype or order is a TypeError: nothing is converted

template <typename T>
std::span<const T> span(const Array<T>& array) {
  return {array.data(), static_cast<size_t>(array.size())};
}

using Counts = std::vector<int64_t>;  // one an axis

// The builder reads an operator's arrays when it builds: they must outlive it.
using Weight = py::keep_alive<1, 5>;
using Rest = py::keep_alive<1, 6>;
using Bias = py::keep_alive<1, 7>;
using Multiplier = py::keep_alive<1, 8>;
using OptionalRest = std::optional<Array<int16_t>>;

int8d::WeightsDef weights(const Array<int8_t>& weight, const OptionalRest& rest, const Array<int32_t>& bias,
                          const Array<float>& multiplier, int lo, int hi) {
  return {span(weight), span(bias), span(multiplier), lo, hi, rest ? span(*rest) : std::span<const int16_t>()};
}

int8d::WindowDef window(std::array<int, 2> kernel, std::array<int, 2> stride, std::array<int, 4> padding,
                        std::array<int, 2> dilation) {
  return {kernel, stride, dilation, padding};
}

struct Borders {
  static constexpr size_t kMost = 64;
  const void* in[kMost];
  void* out[kMost];

  Borders(Program& program, const std::vector<py::array>& inputs, const std::vector<py::array>& outputs) {
    if (inputs.size() != program.inputs() || outputs.size() != program.outputs())
      throw std::invalid_argument("run: wrong number of arrays");
    if (inputs.size() > kMost || outputs.size() > kMost) throw std::invalid_argument("run: too many arrays");
    auto check = [](const py::array& array, size_t bytes) {
      if (static_cast<size_t>(array.nbytes()) != bytes || !(array.flags() & py::array::c_style))
        throw std::invalid_argument("run: an array has the wrong size or is not contiguous");
    };
    for (size_t i = 0; i < inputs.size(); ++i) {
      check(inputs[i], program.input_bytes(i));
      in[i] = inputs[i].data();
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      check(outputs[i], program.output_bytes(i));
      out[i] = const_cast<py::array&>(outputs[i]).mutable_data();
    }
  }
};

void run(Program& program, const std::vector<py::array>& inputs, const std::vector<py::array>& outputs,
         bool keep_lock) {
  const Borders borders(program, inputs, outputs);
  std::optional<py::gil_scoped_release> release;
  if (!keep_lock) release.emplace();
  program.run(borders.in, borders.out);
}

std::vector<int64_t> profile(Program& program, const std::vector<py::array>& inputs,
                             const std::vector<py::array>& outputs) {
  const Borders borders(program, inputs, outputs);
  std::vector<int64_t> nanoseconds(program.steps().size());
  const py::gil_scoped_release release;
  program.profile(borders.in, borders.out, nanoseconds.data());
  return nanoseconds;
}

py::list steps(const Program& program) {
  py::list list;
  for (const int8d::StepInfo& step : program.steps())
    list.append(py::dict(py::arg("names") = step.names, py::arg("kernel") = step.kernel, py::arg("macs") = step.macs,
                         py::arg("split") = int8d::split_name(step.split)));
  return list;
}

py::list options(const Builder& builder) {
  py::list list;
  for (const int8d::Option& option : builder.options()) {
    py::list candidates;
    for (const int8d::Choice& c : option.candidates)
      candidates.append(py::make_tuple(c.kernel, int8d::split_name(c.split), c.fused));
    list.append(py::make_tuple(option.op, option.taker, candidates));
  }
  return list;
}

}  // namespace

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "int8d's native kernels and programs; see _kernels.pyi.";
  m.def("isas", [] {
    std::vector<std::string> names;
    for (int8d::Isa isa : int8d::supported_isas()) names.emplace_back(int8d::isa_name(isa));
    return names;
  });
  m.def("cpu", &int8d::cpu_name);
  m.def(
      "resolve_isa", [](const std::string& name) { return int8d::isa_name(int8d::resolve_isa(name)); },
      py::arg("isa") = "auto");
  m.def(
      "peak_gmacs", [](const std::string& name) { return int8d::peak_gmacs(int8d::resolve_isa(name)); },
      py::arg("isa") = "auto", py::call_guard<py::gil_scoped_release>());

  py::class_<Program>(m, "Program")
      .def("run", &run, py::arg("inputs"), py::arg("outputs"), py::arg("keep_lock") = false)
      .def("profile", &profile, py::arg("inputs"), py::arg("outputs"))
      .def("steps", &steps)
      .def_property_readonly("isa", [](const Program& p) { return int8d::isa_name(p.isa()); })
      .def_property_readonly("threads", &Program::threads)
      .def_property_readonly("arena_bytes", &Program::arena_bytes)
      .def_property_readonly("weight_bytes", &Program::weight_bytes);

  py::class_<Builder>(m, "Builder")
      .def(py::init([](const std::string& isa, int threads, int spin_us) {
             return std::make_unique<Builder>(isa, threads, std::chrono::microseconds(spin_us));
           }),
           py::arg("isa") = "auto", py::arg("threads") = 1, py::arg("spin_us") = 50)
      .def("share", &Builder::share, py::keep_alive<1, 2>())
      .def("tensor",
           [](Builder& b, const std::vector<int64_t>& shape, const std::string& dtype, int zero_point) {
             using int8d::Dtype;
             if (dtype != "u8" && dtype != "s32" && dtype != "f32")
               throw std::invalid_argument("dtype must be u8, s32 or f32");
             return b.tensor(shape, dtype == "u8" ? Dtype::u8 : dtype == "s32" ? Dtype::s32 : Dtype::f32, zero_point);
           })
      .def("input", &Builder::input)
      .def("output", &Builder::output)
      .def("choose",
           [](Builder& b, const std::string& name, const std::string& kernel, const std::string& split, bool fused) {
             b.choose(name, {kernel, int8d::split_named(split).value_or(int8d::Split::automatic), fused});
           })
      .def("options", &options)
      .def(
          "conv2d",
          [](Builder& b, const std::string& name, int in, int out, const Array<int8_t>& weight,
             const OptionalRest& rest, const Array<int32_t>& bias, const Array<float>& multiplier,
             std::array<int, 2> stride, std::array<int, 4> padding, std::array<int, 2> dilation, int groups, int lo,
             int hi) {
            if (weight.ndim() != 4)
              throw std::invalid_argument(name + ": the weight must be [oc, kh, kw, ic / groups]");
            b.conv2d(name, in, out, weights(weight, rest, bias, multiplier, lo, hi),
                     window({static_cast<int>(weight.shape(1)), static_cast<int>(weight.shape(2))}, stride, padding,
                            dilation),
                     groups);
          },
          Weight(), Rest(), Bias(), Multiplier())
      .def(
          "linear",
          [](Builder& b, const std::string& name, int in, int out, const Array<int8_t>& weight,
             const OptionalRest& rest, const Array<int32_t>& bias, const Array<float>& multiplier, int lo,
             int hi) { b.linear(name, in, out, weights(weight, rest, bias, multiplier, lo, hi)); },
          Weight(), Rest(), Bias(), Multiplier())
      .def("max_pool2d",
           [](Builder& b, const std::string& name, int in, int out, std::array<int, 2> kernel,
              std::array<int, 2> stride, std::array<int, 4> padding,
              std::array<int, 2> dilation) { b.max_pool2d(name, in, out, window(kernel, stride, padding, dilation)); })
      .def(
          "avg_pool2d",
          [](Builder& b, const std::string& name, int in, int out, std::array<int, 2> kernel, std::array<int, 2> stride,
             std::array<int, 4> padding, bool count_include_pad, const Array<float>& multipliers, int lo, int hi) {
            b.avg_pool2d(name, in, out, window(kernel, stride, padding, {1, 1}), count_include_pad, span(multipliers),
                         lo, hi);
          })
      .def("add", &Builder::add)
      .def("mul", &Builder::mul)
      .def("lut", [](Builder& b, const std::string& name, int in, int out,
                     const Array<uint8_t>& table) { b.lut(name, in, out, span(table)); })
      .def("concat",
           [](Builder& b, const std::string& name, const std::vector<int>& in, int out, int axis,
              const std::vector<std::optional<Array<uint8_t>>>& tables) {
             std::vector<std::span<const uint8_t>> spans;
             for (const auto& table : tables) spans.push_back(table ? span(*table) : std::span<const uint8_t>());
             b.concat(name, in, out, axis, spans);
           })
      .def("reshape", &Builder::reshape)
      .def("transpose", [](Builder& b, const std::string& name, int in, int out,
                           const std::vector<int>& axes) { b.transpose(name, in, out, axes); })
      .def("slice", [](Builder& b, const std::string& name, int in, int out, const Counts& begin,
                       const Counts& step) { b.slice(name, in, out, begin, step); })
      .def("expand", &Builder::expand)
      .def("pad", [](Builder& b, const std::string& name, int in, int out, const Counts& before, const Counts& after,
                     const Counts& interior, int value) { b.pad(name, in, out, before, after, interior, value); })
      .def("resize2d", [](Builder& b, const std::string& name, int in, int out, const Array<int32_t>& rows,
                          const Array<int32_t>& columns) { b.resize2d(name, in, out, span(rows), span(columns)); })
      .def("argmax", &Builder::argmax)
      .def("constant",
           [](Builder& b, const std::string& name, int out, const py::array& value) {
             if (!(value.flags() & py::array::c_style)) throw std::invalid_argument(name + ": it is not contiguous");
             b.constant(name, out, {static_cast<const uint8_t*>(value.data()), static_cast<size_t>(value.nbytes())});
           })
      .def("quantize", &Builder::quantize)
      .def("dequantize", &Builder::dequantize)
      .def("matmul", &Builder::matmul)
      .def("layer_norm", [](Builder& b, const std::string& name, int in, int out, double epsilon,
                            const Array<float>& gamma, const Array<float>& beta, int lo,
                            int hi) { b.layer_norm(name, in, out, epsilon, span(gamma), span(beta), lo, hi); })
      .def("softmax", [](Builder& b, const std::string& name, int in, int out, const Array<int32_t>& table,
                         float scale) { b.softmax(name, in, out, span(table), scale); })
      .def("build", &Builder::build, py::call_guard<py::gil_scoped_release>());
}
