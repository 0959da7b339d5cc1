// The socket where an engine is asked for its registered memory. One thread serves all who ask.
#pragma once

#include <list>
#include <string>
#include <thread>

#include "registry.hpp"
#include "socket.hpp"

namespace flexnpu::host::datadist {

class Server {
public:
    // Serves until it ends. Throws std::system_error when there is no thread or event.
    Server(std::string engine, Fd listener, Registry& registry);
    ~Server();
    Server(const Server&) = delete;
    Server& operator=(const Server&) = delete;

private:
    struct Client {
        Fd fd;
        Deadline due;          // for its hello
        bool known = false;    // has said hello
        bool closing = false;  // what is to be sent is the last
        uint32_t running = 0;  // transfers it has begun
        std::string in{}, out{};
    };
    void serve();
    void accept_all();
    // False when the client goes.
    bool read(Client& client);
    bool write(Client& client);
    void answer(Client& client, const Message& message);
    void refuse(Client& client, const std::string& why);

    const std::string engine_;
    Fd listener_, stop_;
    Registry& registry_;
    std::list<Client> clients_;
    std::thread thread_;
};

}  // namespace flexnpu::host::datadist
