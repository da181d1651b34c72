package simulate

import (
	"io"
	"os"
	"time"
)

// Options configure a run. The zero value of each field stands for its default.
type Options struct {
	Orders  int     // default 100, or all of the dataset; with a dataset, its first orders
	Riders  int     // default 50; with a dataset, its riders
	Rate    float64 // orders placed per second at most; 0: as fast as MaxOpen allows
	MaxOpen int     // orders that are open at the same time; default twice the riders, at most 128
	Dataset string  // path of a CSV file of deliveries; "": an invented town

	URL         string // of a running `tomato serve`, or several separated by commas; default http://127.0.0.1:8080
	JWTSecret   string // HS256; signs the tokens of all parties
	JWTIssuer   string // iss of the tokens, "" for none
	JWTAudience string // aud of the tokens, "" for none

	Seed     int64         // equal seeds make equal plans; they do not decide who wins a race
	Timeout  time.Duration // longest time without progress; default 2 min
	RetryFor time.Duration // longest time for one call with its retries; default 1 min

	// feedPatience is how long a party waits for its feed before it acts on what
	// REST says. The missing message is reported at the end. Default 10 s.
	feedPatience time.Duration
	// webhookPatience is how long a customer waits for a webhook that was lost
	// on purpose, before the gateway has to send it again. Default 2 s.
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
