package server

import (
	"slices"
	"time"

	"github.com/alecthomas/kong"

	"tomato/cmd/tomato/settings"
	"tomato/commandside/shard"
)

// The roles.
const (
	RoleCommand = "command"
	RoleQuery   = "query"
	RoleFeed    = "feed"
	RoleProject = "project"
	RoleReact   = "react"
)

// Config has the flags of serve. Most of them can also be set in the environment.
type Config struct {
	settings.Dir
	settings.Kafka
	settings.Database
	settings.Pools
	settings.Secrets
	Role         []string          `default:"command,query,feed,project,react" enum:"command,query,feed,project,react" help:"What this process does."`
	NoMigrate    bool              `name:"no-migrate" env:"TOMATO_NO_MIGRATE" help:"Create and change no tables; refuse to start if some are missing. Run tomato migrate up before."`
	Dev          bool              `help:"Make up secrets although a broker or a database is configured."`
	HTTPAddr     string            `name:"http-addr" env:"TOMATO_HTTP_ADDR" default:"127.0.0.1:8080" help:"Where to listen."`
	Advertised   string            `name:"advertised-url" env:"TOMATO_ADVERTISED_URL" help:"Where other instances reach this one. Default: the listening address, if it is no wildcard."`
	JWTIssuer    string            `name:"jwt-issuer" env:"TOMATO_JWT_ISSUER" help:"Tokens must have this iss."`
	JWTMaxTTL    time.Duration     `name:"jwt-max-ttl" env:"TOMATO_JWT_MAX_TTL" default:"0" help:"Tokens that are valid for longer than this are refused. 0: no limit."`
	JWTAudience  string            `name:"jwt-audience" env:"TOMATO_JWT_AUDIENCE" help:"Tokens must have this aud."`
	KeyID        string            `name:"razorpay-key-id" env:"TOMATO_RAZORPAY_KEY_ID" help:"Of Razorpay. Unset: a simulated gateway."`
	KeySecret    string            `name:"razorpay-key-secret" env:"TOMATO_RAZORPAY_KEY_SECRET" secret:"" help:"Of Razorpay."`
	PaymentTTL   settings.Duration `name:"payment-ttl" env:"TOMATO_PAYMENT_TTL" default:"15m" help:"An unpaid order expires after this."`
	PaymentGrace settings.Duration `name:"payment-grace" env:"TOMATO_PAYMENT_GRACE" default:"1h" help:"It waits at most this much longer for webhooks that are not recorded yet."`
	AcceptTTL    settings.Duration `name:"accept-ttl" env:"TOMATO_ACCEPT_TTL" default:"10m" help:"A paid order that is not accepted is cancelled after this."`
	OfferTTL     settings.Duration `name:"offer-ttl" env:"TOMATO_OFFER_TTL" default:"30s" help:"How long a wave of offers lasts."`
	OfferRadii   []int             `name:"offer-radii" env:"TOMATO_OFFER_RADII" default:"5000,8000,12000" help:"Meters, one per wave."`
	OfferLimit   int               `name:"offer-limit" env:"TOMATO_OFFER_LIMIT" default:"50" help:"Riders in one wave."`
	PositionAge  settings.Duration `name:"position-max-age" env:"TOMATO_POSITION_MAX_AGE" default:"5m" help:"Riders with an older position get no offers."`
	SearchWait   settings.Duration `name:"search-wait" env:"TOMATO_SEARCH_WAIT" default:"500ms" help:"A search for riders waits at most this long for the read models, then searches what is there; at most 10s."`
	FeedHistory  settings.Duration `name:"feed-history" env:"TOMATO_FEED_HISTORY" default:"24h" help:"A feed client that was away for this long is sent what it missed; 1m to 168h."`
	FeedBytes    int               `name:"feed-history-bytes" env:"TOMATO_FEED_HISTORY_BYTES" default:"268435456" help:"Memory for the index of what the logs have for each room; at least 1048576."`
	FeedConns    int               `name:"feed-connections" env:"TOMATO_FEED_CONNECTIONS" default:"50000" help:"Feeds that may be open at this instance; over it 503."`
	FeedPerUser  int               `name:"feed-connections-per-user" env:"TOMATO_FEED_CONNECTIONS_PER_USER" default:"20" help:"Feeds of one user that may be open at this instance; over it 429. 0: no limit."`
	FeedRooms    int               `name:"feed-rooms" env:"TOMATO_FEED_ROOMS" default:"64" help:"Rooms that a feed may join beside those of its token; 1 to 255."`
	FeedEmit     int               `name:"feed-emit-bytes" env:"TOMATO_FEED_EMIT_BYTES" default:"65536" help:"Payload of an emitted message; over it 413. 1 to 1048576."`
	FeedSpread   time.Duration     `name:"feed-drain-spread" env:"TOMATO_FEED_DRAIN_SPREAD" default:"5s" help:"Feed clients whose connections are ended together are asked to come back over this time; at most 5m."`
	StopDelay    time.Duration     `name:"shutdown-delay" env:"TOMATO_SHUTDOWN_DELAY" default:"0s" help:"A serve that stops still takes requests for this long after /readyz became 503, so that load balancers notice; at most 5m."`
	ArchiveAfter settings.Duration `name:"archive-after" env:"TOMATO_ARCHIVE_AFTER" default:"720h" help:"Closed orders leave the write side after this; at least 24h."`
	EventEpoch   int               `name:"event-epoch" env:"TOMATO_EVENT_EPOCH" default:"0" help:"Write events up to this event-schema epoch, whatever other instances can read. 0: the lowest epoch of all owners of shards."`
	Origins      []string          `name:"allowed-origins" env:"TOMATO_ALLOWED_ORIGINS" help:"For CORS and websockets."`
}

const maxStopDelay = 5 * time.Minute

// ParseConfig returns the settings of a serve that is called with these flags, such as
// "--role", "query". A setting without a flag comes from the environment, and if it is
// not set there, from the defaults. ParseConfig does not check what Start checks.
func ParseConfig(flags ...string) (Config, error) {
	var c Config
	parser, err := kong.New(&c, kong.Name("serve"), settings.SecretFiles())
	if err != nil {
		return Config{}, err
	}
	if _, err := parser.Parse(flags); err != nil {
		return Config{}, settings.UsageError{Err: err}
	}
	return c, nil
}

// Check returns a settings.UsageError if a server cannot run with these settings.
func (c Config) Check() error {
	switch {
	case time.Duration(c.ArchiveAfter) < 24*time.Hour:
		return settings.Usage("TOMATO_ARCHIVE_AFTER must be at least 24h: closed orders answer for a day")
	case len(c.OfferRadii) == 0 || slices.Min(c.OfferRadii) < 1 || slices.Max(c.OfferRadii) > 50_000 || !slices.IsSorted(c.OfferRadii):
		return settings.Usage("TOMATO_OFFER_RADII must be 1 to 50000 meters, each at least the one before")
	case time.Duration(c.FeedHistory) < time.Minute || time.Duration(c.FeedHistory) > 168*time.Hour:
		return settings.Usage("TOMATO_FEED_HISTORY must be 1m to 168h")
	case c.FeedBytes < 1<<20:
		return settings.Usage("TOMATO_FEED_HISTORY_BYTES must be at least 1048576")
	case c.FeedSpread < 0 || c.FeedSpread > 5*time.Minute:
		return settings.Usage("TOMATO_FEED_DRAIN_SPREAD must be 0s to 5m")
	case c.StopDelay < 0 || c.StopDelay > maxStopDelay:
		return settings.Usage("TOMATO_SHUTDOWN_DELAY must be 0s to 5m")
	case c.FeedConns < 1:
		return settings.Usage("TOMATO_FEED_CONNECTIONS must be at least 1")
	case c.FeedPerUser < 0:
		return settings.Usage("TOMATO_FEED_CONNECTIONS_PER_USER must be 0, for no limit, or more")
	case c.FeedRooms < 1 || c.FeedRooms > 255:
		return settings.Usage("TOMATO_FEED_ROOMS must be 1 to 255: a cursor has no room for more")
	case c.FeedEmit < 1 || c.FeedEmit > 1<<20:
		return settings.Usage("TOMATO_FEED_EMIT_BYTES must be 1 to 1048576")
	case c.OfferLimit < 1 || c.OfferLimit > 1000:
		return settings.Usage("TOMATO_OFFER_LIMIT must be 1 to 1000")
	case time.Duration(c.SearchWait) > 10*time.Second:
		return settings.Usage("TOMATO_SEARCH_WAIT must be at most 10s: orders wait for their riders meanwhile")
	case c.EventEpoch < 0 || c.EventEpoch > shard.BuildEpoch:
		return settings.Usage("TOMATO_EVENT_EPOCH must be 0 to %d, which is the epoch of this build", shard.BuildEpoch)
	case c.JWTMaxTTL < 0:
		return settings.Usage("TOMATO_JWT_MAX_TTL must be 0, for no limit, or more")
	case c.Partitions < 1 || c.Partitions > 1024:
		return settings.Usage("--partitions must be 1 to 1024")
	case c.NoMigrate && c.DatabaseURL == "":
		return settings.Usage("--no-migrate needs DATABASE_URL: nobody else can make the tables of a private Postgres")
	case (c.KeyID == "") != (c.KeySecret == ""):
		return settings.Usage("TOMATO_RAZORPAY_KEY_ID and TOMATO_RAZORPAY_KEY_SECRET go together")
	}
	if err := c.Database.Check(); err != nil {
		return err
	}
	if err := c.Pools.Check(); err != nil {
		return err
	}
	if err := settings.CheckAddresses(c.HTTPAddr, c.Advertised, c.Brokers); err != nil {
		return err
	}
	return c.Secrets.Check()
}

// has reports whether the process has at least one of the roles.
func (c Config) has(roles ...string) bool {
	return slices.ContainsFunc(roles, func(r string) bool { return slices.Contains(c.Role, r) })
}
