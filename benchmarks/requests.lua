-- For wrk: the requests of the Dovecot plugin, byte for byte as in tests/captures/dovecot, each for
-- another of the users, in no order that a database has. It ends wrk after so many, and prints what
-- it has seen as JSON.
--
--     wrk -t 1 -c CONNECTIONS -d 600 --latency -s requests.lua URL -- KIND USERS FIRST COUNT [AGENT]

local ffi = require("ffi")
ffi.cdef([[
  int getpid(void);
  int kill(int pid, int signal);
  int clock_gettime(int clock, long *time);
]])
local MONOTONIC, SIGINT = 1, 2
local STEP = 7919  -- a prime that divides no number of users

local HEAD = "POST %s HTTP/1.1\r\nHost: 127.0.0.1:11619\r\nDate: Tue, 24 Nov 2026 03:19:20 GMT\r\n"
  .. "%sContent-Length: %d\r\nConnection: Keep-Alive\r\n"
  .. "Content-Type: application/json; charset=utf-8\r\n\r\n%s"
local USER = "user%07d@example.test"

local function notice(user, events)
  local body = '{"Username":"%s","Mailbox":"INBOX","Events": [%s]}'
  return "/notify", body:format(user, events)
end

local KINDS = {
  mail = function(number) return notice(USER:format(number), '"MessageNew"') end,
  flag = function(number) return notice(USER:format(number), '"FlagsSet"') end,
  unknown = function(number) return notice("nobody" .. number .. "@example.test", '"MessageNew"') end,
  register = function(number)  -- again; each user has one phone
    local token = {}
    for part = 1, 8 do
      token[part] = ("%08x"):format((number * 2654435761 + part * 40503) % 2^32)
    end
    local body = '{"ApsAccountId":"%08X-CA09-4730-A419-793000CA982E","ApsDeviceToken":"%s",'
      .. '"ApsSubtopic":"com.apple.mobilemail","Username":"%s",'
      .. '"Mailboxes": ["INBOX","Sent Messages"]}'
    return "/register", body:format(number, table.concat(token), USER:format(number))
  end,
}

local make, users, first, count, agent, worker
local sent = 0

function setup(thread)
  worker = thread
end

function init(arguments)
  make = KINDS[arguments[1]]
  -- A client with a name is not the plugin, whose connections end with each registration.
  agent = arguments[5] and "User-Agent: " .. arguments[5] .. "\r\n" or ""
  users, first, count = tonumber(arguments[2]), tonumber(arguments[3]), tonumber(arguments[4])
end

function request()
  if sent == count then  -- wrk would wait for the end of its time
    local time = ffi.new("long[2]")
    ffi.C.clock_gettime(MONOTONIC, time)
    ended = tonumber(time[0]) + tonumber(time[1]) / 1e9
    wrk.thread:stop()
    ffi.C.kill(ffi.C.getpid(), SIGINT)
  end
  local path, body = make((first + sent) * STEP % users)
  sent = sent + 1
  return HEAD:format(path, agent, #body, body)
end

function done(summary, latency)
  local errors = summary.errors
  local told = '{"answered": %d, "seconds": %f, "ended": %f, "failed": %d, "p50": %f, "p99": %f}\n'
  io.write(told:format(summary.requests, summary.duration / 1e6, worker:get("ended"),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1e6, latency:percentile(99) / 1e6))
end
