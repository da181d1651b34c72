package simulate

import (
	"io"
	"os"
	"time"
)

// Options configure a run. The zero value of each field stands for its default.
type Options struct {
	Orders  int     // default 100; with a dataset, how many of its first orders are placed, all by default
	Riders  int     // default 50; not used with a dataset, which has its own riders
	Rate    float64 // orders placed per second at most; 0 means as fast as MaxOpen allows
	MaxOpen int     // orders that are open at the same time; default twice the riders, at most 128
	Dataset string  // path of a CSV file of deliveries; "" means an invented town

	URL         string // of a running `tomato serve`, or several separated by commas; default http://127.0.0.1:8080
	JWTSecret   string // signs the tokens of all parties with HS256; required
	JWTIssuer   string // iss of the tokens, "" for none
	JWTAudience string // aud of the tokens, "" for none

	Seed     int64         // equal seeds make equal plans; they do not decide who wins a race
	Timeout  time.Duration // the run ends after this long without progress; default 2 min
	RetryFor time.Duration // one call is retried for at most this long; default 1 min

	// feedPatience is how long a party waits for a feed message before it acts on
	// what REST says. The missing message is reported at the end. Default 10 s.
	feedPatience time.Duration
	// webhookPatience is how long a customer waits for the webhook of a payment
	// before the gateway is made to send it again. The webhook may have been lost
	// on purpose. Default 2 s.
	webhookPatience time.Duration

	JSON     bool      // prints the report as one JSON object
	Out      io.Writer // gets the report; default os.Stdout
	Progress io.Writer // gets a bar on a terminal, lines elsewhere; default os.Stderr
}

func (o Options) withDefaults() Options {
	if o.Orders <= 0 && o.Dataset == "" {
		o.Orders = 100
	}
	if o.Riders <= 0 {
		o.Riders = 50
	}
	if o.URL == "" {
		o.URL = "http://127.0.0.1:8080"
	}
	if o.Timeout <= 0 {
		o.Timeout = 2 * time.Minute
	}
	if o.RetryFor <= 0 {
		o.RetryFor = time.Minute
	}
	if o.feedPatience <= 0 {
		o.feedPatience = 10 * time.Second
	}
	if o.webhookPatience <= 0 {
		o.webhookPatience = 2 * time.Second
	}
	if o.Out == nil {
		o.Out = os.Stdout
	}
	if o.Progress == nil {
		o.Progress = os.Stderr
	}
	return o
}
