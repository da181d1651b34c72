package gateway

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
)

// The headers of a webhook.
const (
	SignatureHeader = "X-Razorpay-Signature"
	EventIDHeader   = "X-Razorpay-Event-Id"
)

// Sign returns the signature of a webhook: lowercase hex of the HMAC-SHA256 of
// the raw body.
func Sign(secret string, body []byte) string {
	m := hmac.New(sha256.New, []byte(secret))
	m.Write(body)
	return hex.EncodeToString(m.Sum(nil))
}

// Verify reports whether signature is the signature of body under one of the secrets.
// The check takes the same time for every signature, so that the time does not help to
// guess it. An empty secret verifies nothing.
func Verify(secrets []string, body []byte, signature string) bool {
	valid := false
	for _, s := range secrets {
		// The loop has no early exit, because the time must not tell which secret fits.
		if s != "" && hmac.Equal([]byte(Sign(s, body)), []byte(signature)) {
			valid = true
		}
	}
	return valid
}

// IsSignature reports whether s has the form of a signature.
func IsSignature(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(s) == hex.EncodedLen(sha256.Size)
}
