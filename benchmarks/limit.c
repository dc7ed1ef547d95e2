/* The least that a notice and its push can cost: the system calls of a daemon that neither parses,
 * looks up, frames nor encrypts.
 *
 *     limit
 *
 * It prints its port. To each request that it reads it answers at once, and it writes PUSH bytes to
 * a process that stands for APNs, which answers with ANSWER bytes.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <signal.h>
#include <unistd.h>

#define PUSH 380
#define ANSWER 60
#define MANY 64

static const char GOOD[] = "HTTP/1.1 204 No Content\r\n\r\n";
static char data[1 << 17];

static int listening(struct sockaddr_in *address) {
    socklen_t size = sizeof *address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    *address = (struct sockaddr_in){.sin_family = AF_INET,
                                    .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)address, size) || listen(listener, MANY) ||
        getsockname(listener, (struct sockaddr *)address, &size))
        exit(1);
    return listener;
}

static void be_apns(int connection) {
    ssize_t size, rest = 0;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while ((size = read(connection, data, sizeof data)) > 0) {
        rest += size;
        if (write(connection, data, rest / PUSH * ANSWER) < 0) break;
        rest %= PUSH;
    }
    exit(0);
}

int main(void) {
    struct sockaddr_in address, apns_address;
    int listener = listening(&address), apns_listener = listening(&apns_address), one = 1;
    int apns = socket(AF_INET, SOCK_STREAM, 0), epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN}, events[MANY];

    if (connect(apns, (struct sockaddr *)&apns_address, sizeof apns_address)) return 1;
    if (!fork()) be_apns(accept(apns_listener, NULL, NULL));
    setsockopt(apns, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    event.data.fd = apns;
    epoll_ctl(epoll, EPOLL_CTL_ADD, apns, &event);
    event.data.fd = listener;
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(epoll, events, MANY, -1), pushes = 0;
        for (int number = 0; number < ready; number++) {
            int peer = events[number].data.fd;
            if (peer == listener) {
                event.data.fd = accept(listener, NULL, NULL);
                epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event);
            } else if (read(peer, data, sizeof data) <= 0) {
                if (peer == apns) return 1;
                close(peer);
            } else if (peer != apns) {
                if (write(peer, GOOD, sizeof GOOD - 1) < 0) close(peer);
                pushes++;
            }
        }
        if (pushes && write(apns, data, pushes * PUSH) < 0) return 1;
    }
}
