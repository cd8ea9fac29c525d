-- Sends the one HTTP request that the file named by the environment variable REQUEST holds.
local file = assert(io.open(os.getenv("REQUEST"), "rb"))
local raw = file:read("*a")
file:close()
local head, body = raw:match("^(.-)\r\n\r\n(.*)$")
local method, path = head:match("^(%u+) (%S+)")
local headers = {}
for name, value in head:gmatch("\r\n([%w%-]+): ([^\r\n]*)") do headers[name] = value end
local whole
function init() whole = wrk.format(method, path, headers, body) end
function request() return whole end
