// What of the graph engine works without one: names of things, so that programs reach the function that fails
// by name.
#include "flexnpu/api/ge.hpp"

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "flexnpu/api/ascend_string.hpp"

namespace flexnpu::api {

uint32_t engine_status(const char* name) {
    engine_failure(name);
    return kGraphFailed;
}

void engine_throw(const char* name) {
    engine_failure(name);
    throw std::runtime_error(std::string(name) + ": there is no graph engine in this process");
}

}  // namespace flexnpu::api

#pragma GCC visibility push(default)
namespace ge {

AscendString::AscendString(const char* text) : text_(text ? std::make_shared<std::string>(text) : nullptr) {}
const char* AscendString::GetString() const { return text_ ? text_->c_str() : ""; }
bool AscendString::operator<(const AscendString& other) const {
    return std::strcmp(GetString(), other.GetString()) < 0;
}
bool AscendString::operator==(const AscendString& other) const {
    return std::strcmp(GetString(), other.GetString()) == 0;
}

class Graph {
public:
    Graph(const char* name);

private:
    std::shared_ptr<void> impl_;
};

Graph::Graph(const char*) {}

}  // namespace ge
#pragma GCC visibility pop
