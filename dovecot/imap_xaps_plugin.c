/* SPDX-License-Identifier: MIT
   Copyright (c) 2026 the xaps authors

   Lets iPhones and iPads register for push over IMAP: the command XAPPLEPUSHSERVICE, for Dovecot
   2.3 and 2.4. What it means is decided in xapsd. This sends it the user and the arguments in one
   line on a UNIX socket, and prints the lines of its answer (xaps/intake/imap.py has the protocol).

   The session waits for the answer, for two seconds at most. It is not left to the event loop:
   lines that come from there can fall into the answer to another command. Most imap processes have
   one client. Several (client_limit) wait together, and when an answer did not come nobody is asked
   for a while, so that they do not wait one after the other. */

#include "lib.h"
#include "net.h"
#include "str.h"
#include "strescape.h"
#include "imap-common.h"
#include "imap-commands.h"
#include "imap-util.h"
#include "mail-user.h"

#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define COMMAND "XAPPLEPUSHSERVICE"
/* To have another socket, set it with Dovecot's import_environment. */
#define SOCKET_VARIABLE "XAPS_IMAP_SOCKET"
#define SOCKET_DEFAULT "/run/xapsd/imap.sock"
#define DEADLINE_MSECS 2000
#define PAUSE_MSECS 10000
#define ANSWER_MAX (64 * 1024)

const char *imap_xaps_plugin_version = DOVECOT_ABI_VERSION;
const char imap_xaps_plugin_binary_dependency[] = "imap";

void imap_xaps_plugin_init(struct module *module);
void imap_xaps_plugin_deinit(void);

static struct module *this_module;
static imap_client_created_func_t *next_hook;
/* Nobody is asked before that time. */
static int64_t pause_end;

static int64_t now_msecs(void)
{
	struct timespec now;

	if (clock_gettime(CLOCK_MONOTONIC, &now) < 0)
		i_fatal("clock_gettime(): %m");
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* The last line is not untagged. */
static bool answer_ends(const string_t *answer)
{
	const char *text = (const char *)str_data(answer);
	size_t start = str_len(answer);

	if (start == 0 || text[--start] != '\n')
		return FALSE;
	while (start > 0 && text[start - 1] != '\n')
		start--;
	return text[start] != '*';
}

/* Returns NULL when the answer is there, otherwise why it is not. */
static const char *talk(int fd, const string_t *request, string_t *answer, int64_t end)
{
	char buffer[4096];
	ssize_t size = send(fd, str_data(request), str_len(request), MSG_NOSIGNAL);

	/* A socket has room for more than Dovecot lets a client say. */
	if (size != (ssize_t)str_len(request))
		return size < 0 ? t_strdup_printf("send() failed: %m") : "the command is too long";
	while (!answer_ends(answer)) {
		struct pollfd readable = { .fd = fd, .events = POLLIN };
		int64_t left = end - now_msecs();

		if (left <= 0) {
			pause_end = now_msecs() + PAUSE_MSECS;
			return "no answer in two seconds";
		}
		if (poll(&readable, 1, (int)left) <= 0)
			continue;
		size = recv(fd, buffer, sizeof(buffer), 0);
		if (size == 0)
			return "the answer has no end";
		if (size < 0 && errno != EAGAIN && errno != EINTR)
			return t_strdup_printf("recv() failed: %m");
		if (size > 0)
			str_append_data(answer, buffer, size);
		if (str_len(answer) > ANSWER_MAX)
			return "the answer is too long";
	}
	return NULL;
}

static bool begins(const char *line, const char *with)
{
	return strncmp(line, with, strlen(with)) == 0;
}

/* Whether a client may see it. */
static bool answer_is_good(const string_t *answer, const char *const *lines)
{
	const unsigned char *text = str_data(answer);
	size_t i;

	for (i = 0; i < str_len(answer); i++) {
		if ((text[i] < ' ' && text[i] != '\r' && text[i] != '\n') || text[i] > '~')
			return FALSE;
	}
	for (; lines[0] != NULL && lines[1] != NULL; lines++) {
		if (!begins(*lines, "* "COMMAND" "))
			return FALSE;
	}
	return lines[0] != NULL && (begins(*lines, "OK ") ||
		begins(*lines, "NO ") || begins(*lines, "BAD "));
}

/* Returns NULL when lines_r are to be printed, the last of them with the tag. */
static const char *ask(const string_t *request, const char *path, const char *const **lines_r)
{
	string_t *answer = t_str_new(4096);
	const char *problem;
	int64_t now = now_msecs();
	int fd;

	if (now < pause_end)
		return "it did not answer just now, and is left in peace for ten seconds";
	fd = net_connect_unix(path);
	if (fd < 0)
		return t_strdup_printf("connect() failed: %m");
	problem = talk(fd, request, answer, now + DEADLINE_MSECS);
	i_close_fd(&fd);
	if (problem != NULL)
		return problem;
	*lines_r = t_strsplit_spaces(str_c(answer), "\r\n");
	return answer_is_good(answer, *lines_r) ? NULL : "the answer is garbage";
}

static bool cmd_xapplepushservice(struct client_command_context *cmd)
{
	struct client *client = cmd->client;
	const char *path = getenv(SOCKET_VARIABLE);
	const char *const *lines, *problem;
	const struct imap_arg *args;
	string_t *request;

	if (!client_read_args(cmd, 0, 0, &args))
		return FALSE;
	if (path == NULL)
		path = SOCKET_DEFAULT;
	request = t_str_new(1024);
	str_append(request, "IMAP\t1\t");
	str_append_tabescaped(request, client->user->username);
	str_append_c(request, '\t');
	str_append_tabescaped(request, imap_args_to_str(args));
	str_append_c(request, '\n');

	problem = ask(request, path, &lines);
	if (problem != NULL) {
		e_error(client->event, "xapsd (%s) did not register a phone: %s", path, problem);
		client_send_tagline(cmd, "NO [UNAVAILABLE] Push is not available now");
		return TRUE;
	}
	for (; lines[1] != NULL; lines++)
		client_send_line(client, *lines);
	client_send_tagline(cmd, *lines);
	return TRUE;
}

static void client_created(struct client **client)
{
	/* Those of the setting imap_capability are there already. */
	const char *const *offered = t_strsplit(str_c((*client)->capability_string), " ");

	if (mail_user_is_plugin_loaded((*client)->user, this_module) &&
	    !str_array_icase_find(offered, COMMAND))
		client_add_capability(*client, COMMAND);
	if (next_hook != NULL)
		next_hook(client);
}

void imap_xaps_plugin_init(struct module *module)
{
	this_module = module;
	command_register(COMMAND, cmd_xapplepushservice, 0);
	next_hook = imap_client_created_hook_set(client_created);
}

void imap_xaps_plugin_deinit(void)
{
	imap_client_created_hook_set(next_hook);
	command_unregister(COMMAND);
}
