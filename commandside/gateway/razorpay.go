package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sony/gobreaker/v2"

	"tomato/eventlog"
)

const (
	razorpayURL      = "https://api.razorpay.com"
	razorpayTimeout  = 10 * time.Second // of one call, including reading the body of the answer
	maxResponseBytes = 1 << 20
	breakerFailures  = 5 // failures in a row that open the breaker
	breakerOpenFor   = 5 * time.Second
)

// Razorpay is the real gateway. It is called over its REST API.
//
// The only state is a circuit breaker. After five failures in a row (timeouts, 429,
// 5xx, rejected credentials) calls fail at once for five seconds. Then one call is let
// through. A refusal is not a failure in this sense. Safe for concurrent use.
type Razorpay struct {
	keyID, keySecret string
	baseURL          string
	client           *http.Client
	breaker          *gobreaker.CircuitBreaker[[]byte]
}

// RazorpayOptions are options for tests and unusual networks. The zero value is ready
// to use.
type RazorpayOptions struct {
	BaseURL string        // default https://api.razorpay.com
	Timeout time.Duration // of one call; default 10 s
	Log     *slog.Logger  // logs when the breaker opens and closes; default slog.Default()
}

// NewRazorpay returns the gateway of this account.
func NewRazorpay(keyID, keySecret string, o RazorpayOptions) *Razorpay {
	if o.BaseURL == "" {
		o.BaseURL = razorpayURL
	}
	if o.Timeout == 0 {
		o.Timeout = razorpayTimeout
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Razorpay{
		keyID: keyID, keySecret: keySecret, baseURL: strings.TrimSuffix(o.BaseURL, "/"),
		client: &http.Client{
			Timeout: o.Timeout,
			// Redirects are not followed. They would send our credentials to another
			// host, and could turn a POST into a GET.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				Proxy:                  http.ProxyFromEnvironment,
				DialContext:            (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
				ForceAttemptHTTP2:      true,
				MaxIdleConnsPerHost:    32,
				MaxConnsPerHost:        128,
				IdleConnTimeout:        90 * time.Second,
				TLSHandshakeTimeout:    5 * time.Second,
				MaxResponseHeaderBytes: 64 << 10,
			},
		},
		breaker: gobreaker.NewCircuitBreaker[[]byte](gobreaker.Settings{
			Name:        "razorpay",
			Timeout:     breakerOpenFor,
			ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= breakerFailures },
			IsSuccessful: func(err error) bool {
				return err == nil || !errors.Is(err, eventlog.ErrUnavailable) || errors.Is(err, errStillRunning)
			},
			// A caller that gave up says nothing about the gateway's health.
			IsExcluded: func(err error) bool { return errors.Is(err, context.Canceled) },
			OnStateChange: func(name string, from, to gobreaker.State) {
				o.Log.Warn("circuit breaker", "dependency", name, "from", from.String(), "to", to.String())
			},
		}),
	}
}

// dependency is the gateway's name in errors that say that it is unavailable.
const dependency = "gateway"

// Provider implements Gateway.
func (*Razorpay) Provider() string { return "razorpay" }

// KeyID implements Gateway.
func (r *Razorpay) KeyID() string { return r.keyID }

// CreateOrder implements Gateway.
func (r *Razorpay) CreateOrder(ctx context.Context, receipt string, amount int64, currency string) (Order, error) {
	var o wireOrder
	err := r.call(ctx, http.MethodPost, "/v1/orders", nil, struct {
		Amount   int64  `json:"amount"`
		Currency string `json:"currency"`
		Receipt  string `json:"receipt"`
		Notes    notes  `json:"notes"`
	}{amount, currency, receipt, notes{noteOrder: receipt}}, &o)
	if err != nil {
		return Order{}, fmt.Errorf("gateway order: %w", err)
	}
	if !gatewayID.MatchString(o.ID) || o.Amount != amount || o.Currency != currency {
		return Order{}, eventlog.Unavailable(fmt.Errorf("gateway order %q over %d %s was opened for %d %s", o.ID, o.Amount, o.Currency, amount, currency))
	}
	return Order{GatewayOrderID: o.ID, KeyID: r.keyID, Amount: o.Amount, Currency: o.Currency}, nil
}

// Order implements Gateway.
func (r *Razorpay) Order(ctx context.Context, gatewayOrderID string) (string, error) {
	var o wireOrder
	if err := r.get(ctx, "/v1/orders/", gatewayOrderID, "", &o); err != nil {
		return "", fmt.Errorf("gateway order %s: %w", gatewayOrderID, err)
	}
	return deref(o.Receipt), nil
}

// Payment implements Gateway.
func (r *Razorpay) Payment(ctx context.Context, paymentID string) (Payment, error) {
	var p wirePayment
	if err := r.get(ctx, "/v1/payments/", paymentID, "", &p); err != nil {
		return Payment{}, fmt.Errorf("payment %s: %w", paymentID, err)
	}
	return *p.payment(), nil
}

// Payments implements Gateway.
func (r *Razorpay) Payments(ctx context.Context, gatewayOrderID string) ([]Payment, error) {
	var list struct {
		Items []wirePayment `json:"items"`
	}
	if err := r.get(ctx, "/v1/orders/", gatewayOrderID, "/payments", &list); err != nil {
		return nil, fmt.Errorf("payments of gateway order %s: %w", gatewayOrderID, err)
	}
	ps := make([]Payment, len(list.Items))
	for i := range list.Items {
		ps[i] = *list.Items[i].payment()
		if ps[i].GatewayOrderID == "" {
			ps[i].GatewayOrderID = gatewayOrderID
		}
	}
	return ps, nil
}

// Refund implements Gateway. It returns RefundPending while the gateway still
// works on an earlier request for the same refund.
func (r *Razorpay) Refund(ctx context.Context, f Refund) (RefundState, error) {
	if !gatewayID.MatchString(f.PaymentID) {
		return "", ErrUnknown
	}
	// JSON sorts the keys of a map, so equal refunds have equal bodies.
	body := struct {
		Amount  int64  `json:"amount"`
		Speed   string `json:"speed"`
		Notes   notes  `json:"notes"`
		Receipt string `json:"receipt"`
	}{f.Amount, "normal", notes{noteOrder: f.AggregateID, noteRefund: f.RefundID}, f.RefundID}
	var got wireRefund
	err := r.call(ctx, http.MethodPost, "/v1/payments/"+url.PathEscape(f.PaymentID)+"/refund",
		http.Header{"X-Refund-Idempotency": {f.RefundID}}, body, &got)
	switch {
	case errors.Is(err, errStillRunning):
		return RefundPending, nil
	case errors.Is(err, ErrRefused):
		// The gateway forgets idempotency keys after a time. Then it refuses a
		// repeated request because the payment has been refunded already.
		if state, serr := r.RefundState(ctx, f.PaymentID, f.RefundID); serr == nil {
			return state, nil
		} else if !errors.Is(serr, ErrUnknown) && !errors.Is(serr, ErrRefused) {
			return "", fmt.Errorf("refund of %s: %w", f.PaymentID, serr)
		}
		return "", fmt.Errorf("refund of %s: %w", f.PaymentID, err)
	case err != nil:
		return "", fmt.Errorf("refund of %s: %w", f.PaymentID, err)
	}
	return refundState(got.Status), nil
}

// RefundState implements Gateway.
func (r *Razorpay) RefundState(ctx context.Context, paymentID, refundID string) (RefundState, error) {
	var list struct {
		Items []wireRefund `json:"items"`
	}
	if err := r.get(ctx, "/v1/payments/", paymentID, "/refunds", &list); err != nil {
		return "", fmt.Errorf("refunds of %s: %w", paymentID, err)
	}
	for _, f := range list.Items {
		if f.Notes[noteRefund] == refundID || deref(f.Receipt) == refundID {
			return refundState(f.Status), nil
		}
	}
	return "", fmt.Errorf("refund %s of %s: %w", refundID, paymentID, ErrUnknown)
}

func refundState(status string) RefundState {
	switch s := RefundState(status); s {
	case RefundProcessed, RefundFailed:
		return s
	}
	return RefundPending // all other names that the gateway has mean that the refund has not ended
}

// errStillRunning means that the gateway answered 409, because the first request with
// this idempotency key has not ended.
var errStillRunning = errors.New("still running at the gateway")

func (r *Razorpay) get(ctx context.Context, before, id, after string, out any) error {
	if !gatewayID.MatchString(id) {
		return ErrUnknown
	}
	return r.call(ctx, http.MethodGet, before+url.PathEscape(id)+after, nil, nil, out)
}

// call makes one request. The error is ErrRefused, ErrUnknown or errStillRunning, or it
// means that the gateway is unavailable.
func (r *Razorpay) call(ctx context.Context, method, path string, h http.Header, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	b, err := r.breaker.Execute(func() ([]byte, error) { return r.roundTrip(ctx, method, path, h, body) })
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return eventlog.UnavailableFrom(dependency, err)
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, out); err != nil {
		return eventlog.Unavailable(fmt.Errorf("the gateway's answer cannot be decoded: %w", err))
	}
	return nil
}

func (r *Razorpay) roundTrip(ctx context.Context, method, path string, h http.Header, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, r.baseURL+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for k, v := range h {
		req.Header[k] = v
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.SetBasicAuth(r.keyID, r.keySecret)
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, eventlog.UnavailableFrom(dependency, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxResponseBytes+1))
	if err != nil {
		return nil, eventlog.UnavailableFrom(dependency, err)
	}
	if len(b) > maxResponseBytes {
		return nil, eventlog.Unavailable(fmt.Errorf("the gateway's answer is longer than %d bytes", maxResponseBytes))
	}
	if resp.StatusCode/100 == 2 {
		return b, nil
	}
	return nil, classify(resp.StatusCode, b)
}

// classify returns the error for an answer that is not a success. The error is
// ErrUnknown or ErrRefused only if the answer has the gateway's own format, because a
// proxy may answer 404, too.
func classify(status int, body []byte) error {
	var e struct {
		Error struct {
			Code        string `json:"code"`
			Description string `json:"description"`
		} `json:"error"`
	}
	own := json.Unmarshal(body, &e) == nil && e.Error.Code != ""
	text := text(e.Error.Description)
	switch {
	case status == http.StatusConflict:
		// Refund handles this error. For every other call it is the same as an
		// unavailable gateway, so the call is tried again.
		return eventlog.Unavailable(fmt.Errorf("%w: %s", errStillRunning, text))
	case status == http.StatusUnauthorized, status == http.StatusForbidden, status == http.StatusTooManyRequests, status == http.StatusRequestTimeout,
		status >= 500, status < 400, !own:
		return eventlog.UnavailableFrom(dependency, fmt.Errorf("the gateway answered %d %s", status, text))
	case status == http.StatusNotFound, strings.Contains(strings.ToLower(text), "does not exist"):
		return fmt.Errorf("%w: %s", ErrUnknown, text)
	}
	return fmt.Errorf("%w: %s", ErrRefused, text)
}
