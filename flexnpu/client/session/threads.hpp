// What the client keeps for each thread.
#pragma once

#include <pthread.h>

#include "flexnpu/client/session/session.hpp"

namespace flexnpu::client {

// The calling thread's device, and its rings by device.
struct Thread {
    int device = -1;
    Channel* channels[wire::kMaxDevices] = {};

    static Thread& get();
    static void end(void* thread);
    // Its ring of a session that is still the device's.
    Channel* channel(const Session* s) const {
        Channel* c = channels[s->device()];
        return c && &c->session() == s ? c : nullptr;
    }
};

// All that the hot path reads: the ring of the thread's device.
extern constinit __attribute__((tls_model("initial-exec"))) thread_local Channel* this_channel;
extern constinit __attribute__((tls_model("initial-exec"))) thread_local Thread* this_thread;
// Not a thread_local with a destructor: others' destructors may still call us, and a key's runs after all of
// those, and again if need be.
extern pthread_key_t thread_key;

}  // namespace flexnpu::client
