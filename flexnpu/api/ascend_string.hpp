// The graph engine's string, which other libraries of CANN take as well.
#pragma once

#include <memory>
#include <string>

#pragma GCC visibility push(default)
namespace ge {

// The layout is the vendor's: programs copy and destroy these objects by code of their own. Defined by the
// library around ge.cpp.
class AscendString {
public:
    AscendString(const char* text);
    const char* GetString() const;
    bool operator<(const AscendString& other) const;
    bool operator==(const AscendString& other) const;

private:
    std::shared_ptr<std::string> text_;
};

}  // namespace ge
#pragma GCC visibility pop
