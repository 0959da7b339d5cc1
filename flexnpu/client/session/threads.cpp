#include "flexnpu/client/session/threads.hpp"

#include <utility>

namespace flexnpu::client {

constinit thread_local Channel* this_channel = nullptr;
constinit thread_local Thread* this_thread = nullptr;
pthread_key_t thread_key;

Thread& Thread::get() {
    if (!this_thread) {
        this_thread = new Thread;
        pthread_setspecific(thread_key, this_thread);
    }
    return *this_thread;
}

// A thread has ended: its rings serve the next new threads.
void Thread::end(void* thread) {
    auto* t = static_cast<Thread*>(thread);
    for (int d = 0; d < wire::kMaxDevices; d++) {
        Channel* c = t->channels[d];
        if (!c) continue;
        Session& s = c->session();
        // A thread that was killed amid a question leaves its answer to come: nobody else may read that.
        if (&s == Session::opened(d) && !c->asking()) s.give_channel(c);
        s.leave();
    }
    delete t;
    this_thread = nullptr;
    this_channel = nullptr;
}

int Session::current() { return this_thread ? this_thread->device : -1; }

void Session::use(int device) {
    Thread& t = Thread::get();
    t.device = device;
    Session* s = opened(device);
    this_channel = s ? t.channel(s) : nullptr;
}

Channel* Session::channel() {
    if (Channel* c = this_channel; __builtin_expect(c != nullptr, 1)) return c;
    Session* s = get();
    return s ? s->mine() : nullptr;
}

Channel* Session::any_channel() {
    Session* s = any();
    return s ? s->mine() : nullptr;
}

Channel* Session::mine() {
    if (Channel* c = this_channel; c && &c->session() == this) return c;
    Thread& t = Thread::get();
    Channel* c = t.channel(this);
    if (!c) {
        c = take_channel();
        if (!c) return nullptr;
        Channel* before = std::exchange(t.channels[device_], c);
        if (before) before->session().leave();
    }
    if (t.device == device_) this_channel = c;
    return c;
}

}  // namespace flexnpu::client
