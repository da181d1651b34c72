package shard

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"tomato/httpapi"
)

// This file owns the signatures of calls between instances.

// Headers of a call between instances.
const (
	hdrTimeout   = "X-Timeout-Ms"       // the time until the caller's deadline, in decimal milliseconds
	hdrTime      = "X-Tomato-Time"      // the sender's clock, in decimal Unix milliseconds
	hdrBodyHash  = "X-Tomato-Body"      // SHA-256 of the body, in lower-case hex
	hdrSignature = "X-Tomato-Signature" // see signCall; in lower-case hex
)

// clockWindow is how far the clocks of two instances may differ. An older call is
// refused, so a recorded call cannot be sent again later. Within the window it can be
// sent again. If somebody may listen between the instances, they need TLS.
const clockWindow = 30 * time.Second

// maxForwarded is the largest size of a forwarded command or its answer, in bytes.
const maxForwarded = 4 << 20

// signCall returns the signature of a call between instances, in lower-case hex: the
// HMAC-SHA256, with a cluster key, of the following text. Every line ends with \n,
// and the values are those of the request line and of the headers:
//
//	tomato call v1
//	<method>
//	<path, as it is escaped in the URL>
//	<X-Tomato-Time>
//	<X-Timeout-Ms>
//	<X-Tomato-Body>
//
// The text has the hash of the body instead of the body. So the receiver can verify the
// signature before it reads the body, and reads no body that is not signed. The format
// must not change, because instances of two builds run side by side during a restart.
func signCall(key, method, path, unixMillis, timeoutMillis, bodyHash string) string {
	return sign(key, "tomato call v1", method, path, unixMillis, timeoutMillis, bodyHash)
}

// sign returns the HMAC-SHA256 of the lines in lower-case hex. The first line says what
// is signed, so that a signature cannot be used for something else.
func sign(key string, lines ...string) string {
	mac := hmac.New(sha256.New, []byte(key))
	for _, l := range lines {
		_, _ = io.WriteString(mac, l) // never fails
		_, _ = io.WriteString(mac, "\n")
	}
	return hex.EncodeToString(mac.Sum(nil))
}

// same reports whether two signatures are equal. It takes constant time.
func same(a, b string) bool { return hmac.Equal([]byte(a), []byte(b)) }

// hashOf returns the SHA-256 of b in lower-case hex.
func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// signRequest sets the headers of a call to another instance.
func (s *Shards) signRequest(h http.Header, body []byte, timeout time.Duration) {
	now := strconv.FormatInt(time.Now().UnixMilli(), 10)
	left := strconv.FormatInt(min(max(1, timeout.Milliseconds()), maxForwardedFor.Milliseconds()), 10)
	hash := hashOf(body)
	h.Set(hdrTime, now)
	h.Set(hdrTimeout, left)
	h.Set(hdrBodyHash, hash)
	h.Set(hdrSignature, signCall(s.ClusterKeys[0], http.MethodPost, CommandsPath, now, left, hash))
}

// Reasons for which a call of another instance is refused.
const (
	refusedSignature = "signature" // the call is not signed, or signed with another key
	refusedClock     = "clock"     // the call is signed, but too old or from the future
	refusedBody      = "body"      // the call is signed, but its body is another one, or too long
	refusedCommand   = "command"   // an instance has sent a command that is not valid
)

// verifyCall returns the body and the time limit of a call that an instance has signed.
// It answers and counts any other call, and returns ok false. It never reads the body
// of a call that is not signed.
func (s *Shards) verifyCall(w http.ResponseWriter, r *http.Request) (body []byte, limit time.Duration, ok bool) {
	at, timeout, hash := r.Header.Get(hdrTime), r.Header.Get(hdrTimeout), r.Header.Get(hdrBodyHash)
	if !slices.ContainsFunc(s.ClusterKeys, func(key string) bool {
		return same(r.Header.Get(hdrSignature), signCall(key, r.Method, r.URL.EscapedPath(), at, timeout, hash))
	}) {
		s.refuseCall(w, r, refusedSignature, httpapi.Unauthorized(`Tomato-Cluster realm="tomato"`,
			"The call is not signed with a cluster key of this instance. Every instance needs the same TOMATO_CLUSTER_KEY, or must have the other one's in TOMATO_CLUSTER_KEYS."))
		return nil, 0, false
	}
	millis, err := strconv.ParseInt(at, 10, 64)
	if off := time.Since(time.UnixMilli(millis)); err != nil || off > clockWindow || off < -clockWindow {
		s.refuseCall(w, r, refusedClock, httpapi.Unauthorized(`Tomato-Cluster realm="tomato"`,
			fmt.Sprintf("The call's time differs from this instance's clock by more than %s. Synchronize the clocks of all instances.", clockWindow)))
		return nil, 0, false
	}
	left, err := strconv.ParseInt(timeout, 10, 64)
	if err != nil || left < 1 || left > maxForwardedFor.Milliseconds() {
		s.refuseCall(w, r, refusedCommand, httpapi.NewProblem(http.StatusBadRequest, "bad_request", hdrTimeout+" is not 1 to "+strconv.FormatInt(maxForwardedFor.Milliseconds(), 10)+"."))
		return nil, 0, false
	}
	body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxForwarded))
	if err != nil || !same(hash, hashOf(body)) {
		s.refuseCall(w, r, refusedBody, httpapi.NewProblem(http.StatusBadRequest, "bad_request", "The body is not the one that was signed, or longer than 4 MiB."))
		return nil, 0, false
	}
	return body, time.Duration(left) * time.Millisecond, true
}

// refuseCall answers, counts and logs a call of another instance that is refused.
func (s *Shards) refuseCall(w http.ResponseWriter, r *http.Request, reason string, p *httpapi.Problem) {
	s.metrics.refusedCalls.WithLabelValues(reason).Inc()
	if s.logged.allow() {
		s.Log.Warn("a call of another instance was refused; more of them within 10 s are only counted", "reason", reason, "from", r.RemoteAddr, "detail", p.Detail)
	}
	httpapi.Refuse(w, r, p)
}

// logLimit lets one log line through in ten seconds. The zero value is ready to use. Safe
// for concurrent use.
type logLimit struct{ last atomic.Int64 }

// allow reports whether a line may be logged now.
func (s *logLimit) allow() bool {
	now := time.Now().UnixNano()
	last := s.last.Load()
	return now-last > int64(10*time.Second) && s.last.CompareAndSwap(last, now)
}

// refusedCall returns the answer of an owner that refused a call, for the log. Such an
// owner has another configuration or is of another build.
func refusedCall(resp *http.Response, body []byte) string {
	return resp.Status + ": " + strings.ToValidUTF8(string(body[:min(len(body), 500)]), "")
}
