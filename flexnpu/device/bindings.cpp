// flexnpu.device._device: the device model for property tests and benchmarks in Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include "flexnpu/device/device.hpp"

namespace nb = nanobind;
using namespace flexnpu::device;
using namespace nb::literals;

NB_MODULE(_device, m) {
    m.doc() =
        "How kernels of several streams share a device: a pure state machine (flexnpu/device/device.hpp).";
    m.attr("NEVER") = kNever;

    nb::enum_<Contention>(m, "Contention")
        .value("Serial", Contention::Serial)
        .value("Fluid", Contention::Fluid);
    nb::enum_<Unit>(m, "Unit")
        .value("Cube", Unit::Cube)
        .value("Vector", Unit::Vector)
        .value("Mixed", Unit::Mixed);
    nb::enum_<Launch>(m, "Launch").value("Greedy", Launch::Greedy).value("Batch", Launch::Batch);

    nb::class_<Chip>(m, "Chip").def(
        "__init__",
        [](Chip* self, Contention contention, uint32_t cube_cores, uint32_t vector_cores, double cube_rate,
           double vector_rate, double hbm_rate, double core_rate) {
            new (self)
                Chip{contention, cube_cores, vector_cores, cube_rate, vector_rate, hbm_rate, core_rate};
        },
        "contention"_a = Contention::Fluid, "cube_cores"_a = 24, "vector_cores"_a = 48, "cube_rate"_a = 0.0,
        "vector_rate"_a = 0.0, "hbm_rate"_a = 0.0, "core_rate"_a = kNever);

    nb::class_<Completion>(m, "Completion")
        .def_ro("stream", &Completion::stream)
        .def_ro("ticket", &Completion::ticket)
        .def_ro("ready_us", &Completion::ready_us)
        .def_ro("start_us", &Completion::start_us)
        .def_ro("end_us", &Completion::end_us);

    nb::class_<Running>(m, "Running")
        .def_ro("stream", &Running::stream)
        .def_ro("ticket", &Running::ticket)
        .def_ro("cube_cores", &Running::cube_cores)
        .def_ro("vector_cores", &Running::vector_cores)
        .def_ro("demand", &Running::demand)
        .def_ro("rate", &Running::rate);

    nb::class_<Use>(m, "Use")
        .def_ro("busy_us", &Use::busy_us)
        .def_ro("cube_core_us", &Use::cube_core_us)
        .def_ro("vector_core_us", &Use::vector_core_us)
        .def_ro("bytes", &Use::bytes)
        .def_ro("cube_ops", &Use::cube_ops)
        .def_ro("vector_ops", &Use::vector_ops)
        .def_ro("kernels", &Use::kernels);

    nb::class_<Device>(m, "Device")
        .def(nb::init<const Chip&>(), "chip"_a)
        .def_ro_static("MAX_STREAMS", &Device::kMaxStreams)
        .def_ro_static("PRIORITIES", &Device::kPriorities)
        .def("add_stream", &Device::add_stream, "priority"_a = 0)
        .def("remove_stream", &Device::remove_stream, "stream"_a)
        .def("set_limit", &Device::set_limit, "stream"_a, "cube_cores"_a = 0, "vector_cores"_a = 0)
        .def(
            "submit",
            [](Device& self, double at_us, uint32_t stream, uint64_t ticket, double cube_ops,
               double vector_ops, double bytes, double launch_us, double static_us, uint32_t blocks,
               Unit unit, Launch launch, bool limited) {
                return self.submit(at_us, stream,
                                   Kernel{ticket, cube_ops, vector_ops, bytes, launch_us, static_us, blocks,
                                          unit, launch, limited});
            },
            "at_us"_a, "stream"_a, "ticket"_a = 0, "cube_ops"_a = 0.0, "vector_ops"_a = 0.0, "bytes"_a = 0.0,
            "launch_us"_a = 0.0, "static_us"_a = 0.0, "blocks"_a = 0, "unit"_a = Unit::Cube,
            "launch"_a = Launch::Greedy, "limited"_a = true)
        .def("next", &Device::next, "until_us"_a = kNever)
        .def(
            "drain",
            [](Device& self) {
                uint64_t ended = 0;
                while (self.next(kNever)) {
                    ++ended;
                }
                return std::pair(ended, self.now_us());
            },
            "Runs all that was submitted: (kernels that ended, when the last did).")
        .def("next_at", &Device::next_at)
        .def("now_us", &Device::now_us)
        .def("running", &Device::running)
        .def("queued", &Device::queued, "stream"_a)
        .def("use", [](const Device& self) { return self.use(); });
}
