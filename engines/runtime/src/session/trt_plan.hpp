// A compiled plan as sessions use it: its tensors, and execution contexts.

#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace nvlm {

// Free dimensions of a plan's tensors are -1.
using PlanShape = std::vector<std::int64_t>;

std::size_t numbers_in(const PlanShape& shape);

// One execution context. Shapes and addresses stay until they are set anew.
class PlanContext {
  public:
    virtual ~PlanContext() = default;

    // Set the address of a tensor, and the shape of an input. Throws Error (failure): the shape is outside
    // of the profile, or there is no such tensor.
    void bind(const std::string& name, void* address, const PlanShape& shape = {});
    // Put the computation on the stream.
    void run() { start(); }
    // The same as one captured graph, from the third time on with the same shapes and addresses: libraries
    // set themselves up in the first one.
    void run_captured();

  protected:
    virtual void set_shape(const std::string& name, const PlanShape& shape) = 0;
    virtual void set_address(const std::string& name, void* address) = 0;
    virtual void start() = 0;
    // Record what `start` puts on the stream, in place of what was recorded before.
    virtual void capture() = 0;
    virtual void launch() = 0;

  private:
    struct Binding {
        void* address;
        PlanShape shape;
    };
    enum class Captured { no, warm, yes };

    std::map<std::string, Binding> bound_;
    Captured captured_ = Captured::no;
};

class Plan {
  public:
    virtual ~Plan() = default;

    virtual const std::string& path() const = 0;
    virtual const std::vector<std::string>& names() const = 0;
    virtual bool is_input(const std::string& name) const = 0;
    virtual PlanShape shape(const std::string& name) const = 0;
    // Largest shape of an input in the first profile.
    virtual PlanShape largest(const std::string& name) const = 0;
    // Bytes of one number.
    virtual std::size_t item_bytes(const std::string& name) const = 0;
    virtual std::size_t profiles() const = 0;
    // Throws Error (failure): there is no memory for it.
    virtual std::unique_ptr<PlanContext> new_context(std::size_t profile) = 0;

    bool has(const std::string& name) const;
};

}  // namespace nvlm
