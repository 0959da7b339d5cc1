// Memory and events that sessions export to and import from each other. Owns the exported events. Calls the
// exports and the releases.
#pragma once

#include <map>
#include <string>

#include "flexnpu/daemon/exports.hpp"
#include "flexnpu/daemon/records/family.hpp"
#include "flexnpu/daemon/releases.hpp"

namespace flexnpu::daemon {

class SharingRecords : RecordFamily {
public:
    SharingRecords(const RecordParts& parts, Exports& exports, Releases& releases)
        : RecordFamily(parts), exports_(exports), releases_(releases) {}

    void share(Session& s, Payload p, const Reply& reply);

private:
    void share_event(Session& s, const wire::Share& w, const std::string& key, const Reply& reply);

    Exports& exports_;
    Releases& releases_;
    std::map<std::string, std::weak_ptr<Event>> ipc_events_;  // by key
};

}  // namespace flexnpu::daemon
