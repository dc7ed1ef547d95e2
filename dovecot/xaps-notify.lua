-- Tells xapsd what happens in mailboxes, from a stock Dovecot (2.3.19 or later, and 2.4), without
-- any third-party plugin.  docs/dovecot.rst shows the configuration.  The URL of the daemon is
-- the plugin setting xaps_url (2.3) or the lua_settings key xaps_url (2.4).  It may hold a name
-- and password: http://user:secret@192.0.2.1:11619/notify
--
-- One POST for each mailbox and transaction, however many messages it touched:
--   {"Username":"alice","Mailbox":"INBOX","Events":["MessageNew"]}
-- Dovecot waits for the answer.  So no notice takes longer than TIMEOUT, a daemon that is down
-- costs no time, and when one hangs, the IMAP session or delivery that found out tells it nothing
-- for PAUSE seconds.

local DEFAULT_URL = "http://[::1]:11619/notify"
local TIMEOUT = 1000   -- milliseconds
local PAUSE = 10       -- seconds
local TIMED_OUT = 9008 -- the status with which Dovecot ends a request after TIMEOUT (http-client.h)

local url
local client
local paused_until = 0

-- 2.3 calls this without an argument and wants a number back; 2.4 passes lua_settings.  The HTTP
-- client's settings have other names there, and a setting that is not known is an error.
-- Two attempts, because the daemon may close a kept connection while a request is on its way.
-- The time for the connection is longer than that for all, which therefore always ends first: with
-- TIMED_OUT, and not as if the connection had been refused.
-- Without the backoff settings each notice to a daemon that is down takes longer than the last.
function script_init(settings)
  if settings ~= nil then
    url = settings.xaps_url or DEFAULT_URL
    local timeout = TIMEOUT .. "ms"
    local function options()
      return {
        request_timeout = timeout, connect_timeout = 2 * TIMEOUT .. "ms",
        request_absolute_timeout = timeout, request_max_attempts = 2,
      }
    end
    local all = options()
    all.connect_backoff_time = "1ms"
    all.connect_backoff_max_time = "1ms"
    local known, result = pcall(dovecot.http.client, all)
    client = known and result or dovecot.http.client(options())
  else
    client = dovecot.http.client({
      request_timeout_msecs = TIMEOUT, connect_timeout_msecs = 2 * TIMEOUT,
      request_absolute_timeout_msecs = TIMEOUT, max_attempts = 2,
      connect_backoff_time_msecs = 1, connect_backoff_max_time_msecs = 1,
    })
  end
  return 0
end

local function json_string(text)
  return '"' .. text:gsub('[%c"\\\127]', function(c) return string.format("\\u%04x", c:byte()) end) .. '"'
end

local function json_array(set)
  local items = {}
  for name in pairs(set) do items[#items + 1] = json_string(name) end
  table.sort(items)
  return "[" .. table.concat(items, ",") .. "]"
end

local function without_password(text)
  return (tostring(text):gsub("//[^/@]*@", "//"))
end

local function failed(user, mailbox, reason)
  dovecot.i_warning(string.format(
    "xapsd was not told of a change in %s of %s (%s): %s",
    mailbox, user, without_password(url), without_password(reason)))
end

local function send(user, mailbox, events)
  local request = client:request({ url = url, method = "POST" })
  request:add_header("Content-Type", "application/json; charset=utf-8")
  request:set_payload('{"Username":' .. json_string(user) .. ',"Mailbox":' .. json_string(mailbox)
    .. ',"Events":' .. json_array(events) .. "}")
  local response = request:submit()
  local status = response:status()
  if status < 200 or status > 299 then -- Dovecot's own failures are 9000 and up
    if status == TIMED_OUT then paused_until = os.time() + PAUSE end
    failed(user, mailbox, status .. " " .. tostring(response:reason()))
  end
end

local function note(context, event)
  local events = context.mailboxes[event.mailbox]
  if not events then
    events = {}
    context.mailboxes[event.mailbox] = events
  end
  events[event.name] = true
end

-- Dovecot also calls this when nothing is left to tell.
local function note_flags(context, event)
  if #event.flags > 0 or #(event.keywords or {}) > 0 then note(context, event) end
end

function dovecot_lua_notify_begin_txn(user)
  -- A script's only way to a setting of 2.3 is through the user.
  url = url or user:plugin_getenv("xaps_url") or DEFAULT_URL
  return { user = user.username, mailboxes = {} }
end

dovecot_lua_notify_event_message_new = note
dovecot_lua_notify_event_message_append = note
dovecot_lua_notify_event_message_expunge = note
dovecot_lua_notify_event_flags_set = note_flags
dovecot_lua_notify_event_flags_clear = note_flags

function dovecot_lua_notify_end_txn(context, success)
  if not success then return end
  for mailbox, events in pairs(context.mailboxes) do
    if os.time() >= paused_until then
      local ok, reason = pcall(send, context.user, mailbox, events)
      if not ok then failed(context.user, mailbox, reason) end
    end
  end
end
