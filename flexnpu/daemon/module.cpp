// flexnpu.daemon._plane: the data plane for Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "flexnpu/daemon/plane.hpp"
#include "flexnpu/wire/futex.hpp"

namespace nb = nanobind;
using namespace flexnpu::daemon;
namespace gate = flexnpu::gate;

namespace {

const char* phase_name(gate::Phase p) {
    switch (p) {
        case gate::Phase::Prefill: return "prefill";
        case gate::Phase::Decode: return "decode";
        default: return "unknown";
    }
}

gate::Phase phase_of(const std::string& name) {
    if (name == "prefill") return gate::Phase::Prefill;
    if (name == "decode") return gate::Phase::Decode;
    if (name == "unknown") return gate::Phase::Unknown;
    throw nb::value_error(("phase is '" + name + "': it must be prefill, decode or unknown").c_str());
}

gate::Settings settings_of(const nb::dict& d) {
    gate::Settings s;
    for (auto [key, value] : d) {
        const std::string name = nb::cast<std::string>(key);
        if (name == "enabled")
            s.enabled = nb::cast<bool>(value);
        else if (name == "window_us")
            s.window_us = nb::cast<double>(value);
        else if (name == "overlap_slowdown")
            s.overlap_slowdown = nb::cast<double>(value);
        else if (name == "lease_until_ns")
            s.lease_until_ns = nb::cast<uint64_t>(value);
        else if (name == "decode_idle_us")
            s.decode_idle_us = nb::cast<double>(value);
        else if (name == "max_hold_us")
            s.max_hold_us = nb::cast<double>(value);
        else if (name == "default_stretch")
            s.default_stretch = nb::cast<double>(value);
        else
            throw nb::value_error(("the gate has no setting '" + name + "'").c_str());
    }
    return s;
}

Limits limits_of(const nb::dict& d) {
    Limits l;
    std::map<std::string, uint64_t*> fields = {
        {"sessions", &l.sessions},
        {"sessions_per_user", &l.sessions_per_user},
        {"rings", &l.rings},
        {"rings_per_user", &l.rings_per_user},
        {"rings_per_session", &l.rings_per_session},
        {"host_bytes", &l.host_bytes},
        {"host_bytes_per_user", &l.host_bytes_per_user},
        {"pinned_bytes", &l.pinned_bytes},
        {"pinned_bytes_per_user", &l.pinned_bytes_per_user},
        {"device_bytes_per_session", &l.device_bytes_per_session},
        {"allow_kernels", &l.allow_kernels},
        {"hello_ms", &l.hello_ms},
        {"call_ms", &l.call_ms},
        {"end_ms", &l.end_ms},
        {"threads", &l.threads},
    };
    for (size_t k = 0; k < kHeldKinds; k++) {
        const std::string kind = plural_of(HeldKind(k));
        fields[kind] = &l.objects[k].all;
        fields[kind + "_per_user"] = &l.objects[k].per_user;
        fields[kind + "_per_session"] = &l.objects[k].per_session;
    }
    for (auto [key, value] : d) {
        const std::string name = nb::cast<std::string>(key);
        const auto field = fields.find(name);
        if (field == fields.end()) throw nb::value_error(("there is no limit '" + name + "'").c_str());
        *field->second = nb::cast<uint64_t>(value);
    }
    return l;
}

/// What a process has named itself: any bytes, also such as are no UTF-8.
nb::str text_of(const std::string& bytes) {
    return nb::steal<nb::str>(
        PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "replace"));
}

nb::list sessions_of(const std::vector<SessionInfo>& infos) {
    nb::list out;
    for (const SessionInfo& s : infos) {
        nb::dict d;
        d["session"] = s.session;
        d["pid"] = s.pid;
        d["comm"] = text_of(s.comm);
        d["uid"] = s.uid;
        d["memory_bytes"] = s.memory_bytes;
        d["memory_quota_bytes"] =
            s.memory_quota_bytes ? nb::object(nb::int_(s.memory_quota_bytes)) : nb::none();
        d["rings"] = s.rings;
        d["lanes"] = s.lanes;
        d["calls"] = s.calls;
        d["refused"] = s.refused;
        d["ring_full"] = s.ring_full;
        out.append(d);
    }
    return out;
}

nb::list lanes_of(const std::vector<LaneInfo>& infos) {
    nb::list out;
    for (const LaneInfo& l : infos) {
        nb::dict d;
        d["lane"] = l.lane;
        d["session"] = l.session;
        d["pid"] = l.pid;
        d["comm"] = text_of(l.comm);
        d["stream"] = l.stream;
        d["phase"] = phase_name(l.phase);
        d["queued"] = l.queued;
        d["in_flight"] = l.in_flight;
        d["in_flight_us"] = l.in_flight_us;
        d["launched"] = l.launched;
        d["completed"] = l.completed;
        d["device_us"] = l.device_us;
        d["gated_us"] = l.gated_us;
        d["held_now"] = l.held_now;
        d["prefill_steps"] = l.prefill_steps;
        d["decode_steps"] = l.decode_steps;
        d["prefill_tokens"] = l.prefill_tokens;
        d["decode_tokens"] = l.decode_tokens;
        out.append(d);
    }
    return out;
}

}  // namespace

NB_MODULE(_plane, m) {
    m.doc() = "The native data plane of one device: client sessions, lanes, the gate, the vendor's calls.";
    // The dispatching thread did not do what it was asked to in time, and will not do it later.
    // NOLINTNEXTLINE(bugprone-unused-raii,bugprone-throw-keyword-missing): the constructor registers the type
    nb::exception<PlaneTimeout>(m, "PlaneTimeout", PyExc_TimeoutError);
    nb::class_<Plane>(m, "Plane")
        .def(
            "__init__",
            [](Plane* p, std::string vendor_dir, int32_t device, std::string socket_path,
               std::vector<uint32_t> users, std::vector<uint32_t> groups, const nb::dict& limits) {
                new (p) Plane(std::move(vendor_dir), device, std::move(socket_path),
                              Access{std::move(users), std::move(groups)}, limits_of(limits));
            },
            nb::arg("vendor_dir"), nb::arg("device"), nb::arg("socket_path"),
            nb::arg("allowed_uids") = std::vector<uint32_t>{},
            nb::arg("allowed_gids") = std::vector<uint32_t>{}, nb::arg("limits") = nb::dict(),
            "A plane for one device, not started. `vendor_dir` holds libascendcl.so and its family; "
            "`allowed_uids` and members of `allowed_gids` "
            "may connect besides root and the user who makes the plane; `limits`: a dict of the fields of "
            "daemon::Limits, the rest keep their "
            "defaults.")
        .def("prepare", &Plane::prepare, nb::call_guard<nb::gil_scoped_release>(),
             "Load the libraries and bind the socket: what a plane may do before it gives up privileges. "
             "Raises RuntimeError naming what failed.")
        .def("start", &Plane::start, nb::call_guard<nb::gil_scoped_release>(),
             "Prepare, if that was not done, and open the device. Raises RuntimeError naming what failed.")
        .def("stop", &Plane::stop, nb::call_guard<nb::gil_scoped_release>(),
             "Close every session and the device; a second call does nothing.")
        .def_prop_ro(
            "soc", [](const Plane& p) { return p.soc(); }, "The chip's name, once started.")
        .def(
            "sessions",
            [](Plane& p) {
                std::vector<SessionInfo> infos;
                {
                    nb::gil_scoped_release release;
                    infos = p.sessions();
                }
                return sessions_of(infos);
            },
            "One dict a client process: the fields of control's SessionStatus. Raises PlaneTimeout.")
        .def(
            "lanes",
            [](Plane& p) {
                std::vector<LaneInfo> infos;
                {
                    nb::gil_scoped_release release;
                    infos = p.lanes();
                }
                return lanes_of(infos);
            },
            "One dict a lane (a client's stream): the fields of control's LaneStatus. Raises PlaneTimeout.")
        .def("counters", &Plane::counters, nb::call_guard<nb::gil_scoped_release>(),
             "Counts since the start, by name. Raises PlaneTimeout.")
        .def(
            "snapshot",
            [](Plane& p, double within_s) {
                Snapshot found;
                const uint64_t asked = flexnpu::wire::now_ns();
                {
                    nb::gil_scoped_release release;
                    found = p.snapshot(std::chrono::milliseconds(int64_t(within_s * 1000)));
                }
                nb::dict out;
                out["sessions"] = sessions_of(found.sessions);
                out["lanes"] = lanes_of(found.lanes);
                out["counters"] = nb::cast(found.counters);
                out["age_s"] = double(asked - std::min(asked, found.taken_ns)) / 1e9;
                return out;
            },
            nb::arg("within_s") = 0.25,
            "A dict of `sessions`, `lanes` and `counters`, all of one time, and `age_s`: 0 if they are of "
            "now, "
            "else how old they are, s, because the dispatching thread did not answer within `within_s`.")
        .def(
            "set_gate",
            [](Plane& p, const nb::dict& settings, const std::map<uint32_t, std::string>& phases,
               std::optional<double> decode_target_us, const std::map<uint32_t, double>& targets_us) {
                const gate::Settings s = settings_of(settings);
                std::map<uint32_t, gate::Phase> values;
                for (const auto& [lane, name] : phases) values[lane] = phase_of(name);
                nb::gil_scoped_release release;
                return p.set_gate(s, values, decode_target_us, targets_us);
            },
            nb::arg("settings"), nb::arg("phases") = std::map<uint32_t, std::string>{},
            nb::arg("decode_target_us") = nb::none(), nb::arg("targets_us") = std::map<uint32_t, double>{},
            "Set the gate's settings (a dict of the fields of gate::Settings; the rest keep their defaults), "
            "the "
            "phases of lanes by number and, unless None, the step target of all decode lanes, us, and those "
            "of lanes: at once. "
            "Returns the lanes named that do not exist: if there are any, nothing is changed. Raises "
            "PlaneTimeout, and then nothing is changed, also not later.")
        .def(
            "set_lane",
            [](Plane& p, uint32_t lane, const std::string& phase, double target_us) {
                const gate::Phase value = phase_of(phase);
                nb::gil_scoped_release release;
                return p.set_lane(lane, value, target_us);
            },
            nb::arg("lane"), nb::arg("phase"), nb::arg("target_us") = 0.0,
            "Set a lane's phase and step target, us; False when there is no such lane. Raises PlaneTimeout.");
}
