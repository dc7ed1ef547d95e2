/* APNs as the benchmarks need it: takes each push at once, and costs as little as it can.
 *
 *     standin PORT CERTIFICATE KEY
 *
 * It prints the port that it listens on. For each line on its standard input it prints what it has
 * counted: pushes, different device tokens, and when the first and the last push came, in seconds
 * of CLOCK_MONOTONIC. After the line "reset" it counts anew. It ends with its standard input.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define PATH "/3/device/"
#define STREAMS 1000 /* at a time, as with APNs */
#define SLOTS (1u << 22)

struct peer {
    int fd;
    SSL *ssl;
    nghttp2_session *session;
    const uint8_t *rest; /* what nghttp2 has given and TLS has not taken */
    ssize_t rest_size;
    int waits_to_write;
};

struct push {
    uint64_t token;
    uint8_t id[36];
    size_t id_size;
};

static uint64_t *seen, pushes, unique;
static double first, last;

static void die(const char *what) {
    perror(what);
    ERR_print_errors_fp(stderr);
    exit(1);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void count(uint64_t token) {
    uint32_t slot = token % SLOTS;
    last = now();
    if (!pushes++) first = last;
    while (seen[slot] && seen[slot] != token) slot = (slot + 1) % SLOTS;
    if (seen[slot]) return;
    seen[slot] = token;
    if (++unique > SLOTS / 2) {
        fputs("too many tokens\n", stderr);
        exit(1);
    }
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *peer) {
    struct push *push = calloc(1, sizeof *push);
    (void)peer;
    if (!push) die("calloc");
    nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, push);
    return 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t name_size, const uint8_t *value, size_t value_size, uint8_t flags,
                     void *peer) {
    struct push *push = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    (void)flags, (void)peer;
    if (!push) return 0;
    if (name_size == 5 && !memcmp(name, ":path", 5)) {
        push->token = 14695981039346656037u; /* FNV-1a, and never 0 */
        for (size_t at = strlen(PATH); at < value_size; at++)
            push->token = (push->token ^ value[at]) * 1099511628211u;
        push->token |= !push->token;
    } else if (name_size == 7 && !memcmp(name, "apns-id", 7) && value_size <= sizeof push->id) {
        memcpy(push->id, value, value_size);
        push->id_size = value_size;
    }
    return 0;
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *peer) {
    struct push *push;
    (void)peer;
    if (!(frame->hd.flags & NGHTTP2_FLAG_END_STREAM) ||
        (frame->hd.type != NGHTTP2_DATA && frame->hd.type != NGHTTP2_HEADERS))
        return 0;
    push = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (!push) return 0;
    nghttp2_nv answer[] = {
        {(uint8_t *)":status", (uint8_t *)"200", 7, 3, NGHTTP2_NV_FLAG_NONE},
        {(uint8_t *)"apns-id", push->id, 7, push->id_size, NGHTTP2_NV_FLAG_NONE},
    };
    count(push->token);
    return nghttp2_submit_response(session, frame->hd.stream_id, answer, 2, NULL);
}

static int on_close(nghttp2_session *session, int32_t stream, uint32_t code, void *peer) {
    (void)code, (void)peer;
    free(nghttp2_session_get_stream_user_data(session, stream));
    return 0;
}

static int choose_h2(SSL *ssl, const unsigned char **out, unsigned char *out_size,
                     const unsigned char *in, unsigned int in_size, void *context) {
    static const unsigned char h2[] = "\x02h2";
    (void)ssl, (void)context;
    if (SSL_select_next_proto((unsigned char **)out, out_size, h2, 3, in, in_size) !=
        OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    return SSL_TLSEXT_ERR_OK;
}

static int anybody(int good, X509_STORE_CTX *context) {
    (void)good, (void)context;
    return 1;
}

static int blocked(SSL *ssl, int result) {
    int error = SSL_get_error(ssl, result);
    ERR_clear_error();
    return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE;
}

/* What there is to send; 0 when the peer is lost. Answers go out together, as from a busy server. */
static int flush(struct peer *peer) {
    static uint8_t block[16384];
    for (;;) {
        size_t size = 0;
        int sent;
        if (!peer->rest_size) {
            while (size < sizeof block / 2) {
                const uint8_t *data;
                ssize_t more = nghttp2_session_mem_send(peer->session, &data);
                if (more < 0) return 0;
                if (!more) break;
                if (size + more > sizeof block) {
                    fputs("a frame that is too long\n", stderr);
                    exit(1);
                }
                memcpy(block + size, data, more);
                size += more;
            }
            if (!size) break;
            peer->rest = block;
            peer->rest_size = size;
        }
        sent = SSL_write(peer->ssl, peer->rest, peer->rest_size);
        if (sent <= 0) {
            if (!blocked(peer->ssl, sent)) return 0;
            if (peer->rest == block) { /* others use it next */
                uint8_t *kept = malloc(peer->rest_size);
                if (!kept) die("malloc");
                memcpy(kept, block, peer->rest_size);
                peer->rest = kept;
            }
            peer->waits_to_write = 1;
            return 1;
        }
        if (peer->rest != block) free((void *)peer->rest);
        peer->rest_size = 0;
    }
    peer->waits_to_write = 0;
    return nghttp2_session_want_read(peer->session) || nghttp2_session_want_write(peer->session);
}

static int serve(struct peer *peer) {
    static uint8_t data[65536];
    for (;;) {
        int size = SSL_read(peer->ssl, data, sizeof data);
        if (size <= 0) {
            if (!blocked(peer->ssl, size)) return 0;
            break;
        }
        if (nghttp2_session_mem_recv(peer->session, data, size) < 0) return 0;
    }
    return flush(peer);
}

static void welcome(int listener, int epoll, SSL_CTX *tls, nghttp2_session_callbacks *callbacks) {
    nghttp2_settings_entry streams = {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, STREAMS};
    struct peer *peer = calloc(1, sizeof *peer);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = peer};
    int one = 1;
    if (!peer) die("calloc");
    peer->fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    if (peer->fd < 0) die("accept");
    setsockopt(peer->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    peer->ssl = SSL_new(tls);
    if (!peer->ssl || !SSL_set_fd(peer->ssl, peer->fd)) die("SSL");
    SSL_set_accept_state(peer->ssl);
    if (nghttp2_session_server_new(&peer->session, callbacks, peer)) die("nghttp2");
    nghttp2_submit_settings(peer->session, NGHTTP2_FLAG_NONE, &streams, 1);
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, peer->fd, &event)) die("epoll_ctl");
}

static void goodbye(struct peer *peer) {
    nghttp2_session_del(peer->session);
    SSL_free(peer->ssl);
    close(peer->fd);
    free(peer);
}

static void answer_controller(void) {
    char line[64];
    ssize_t size = read(0, line, sizeof line);
    if (size <= 0) exit(0);
    if (!strncmp(line, "reset", 5)) {
        memset(seen, 0, SLOTS * sizeof *seen);
        pushes = unique = 0;
        first = last = 0;
    }
    printf("%lu %lu %.6f %.6f\n", pushes, unique, first, last);
}

int main(int count, char **arguments) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    struct epoll_event event = {.events = EPOLLIN}, events[64];
    nghttp2_session_callbacks *callbacks;
    SSL_CTX *tls = SSL_CTX_new(TLS_server_method());
    int listener = socket(AF_INET, SOCK_STREAM, 0), epoll = epoll_create1(0), one = 1;

    if (count != 4) return 2;
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, NULL, _IOLBF, 0);
    seen = calloc(SLOTS, sizeof *seen);
    if (!tls || !seen || !SSL_CTX_use_certificate_chain_file(tls, arguments[2]) ||
        !SSL_CTX_use_PrivateKey_file(tls, arguments[3], SSL_FILETYPE_PEM))
        die("TLS");
    SSL_CTX_set_alpn_select_cb(tls, choose_h2, NULL);
    SSL_CTX_set_verify(tls, SSL_VERIFY_PEER, anybody);
    SSL_CTX_set_session_id_context(tls, (const unsigned char *)"standin", 7);
    SSL_CTX_set_mode(tls, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
    address.sin_port = htons(atoi(arguments[1]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 64) ||
        getsockname(listener, (struct sockaddr *)&address, &size))
        die("listen");
    printf("%d\n", ntohs(address.sin_port));
    event.data.ptr = NULL; /* the controller */
    epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event);
    event.data.ptr = &listener;
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int ready = epoll_wait(epoll, events, 64, -1);
        for (int number = 0; number < ready; number++) {
            struct peer *peer = events[number].data.ptr;
            if (!peer) {
                answer_controller();
            } else if ((void *)peer == &listener) {
                welcome(listener, epoll, tls, callbacks);
            } else if (!serve(peer)) {
                goodbye(peer);
            } else {
                event.events = EPOLLIN | (peer->waits_to_write ? EPOLLOUT : 0);
                event.data.ptr = peer;
                epoll_ctl(epoll, EPOLL_CTL_MOD, peer->fd, &event);
            }
        }
    }
}
