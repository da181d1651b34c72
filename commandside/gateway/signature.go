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

// Verify says whether signature is that of body under one of the secrets. It
// takes as long for a signature that is almost right as for any other. An empty
// secret signs nothing.
func Verify(secrets []string, body []byte, signature string) bool {
	good := false
	for _, s := range secrets {
		// No early exit: which secret fits is nobody's business either.
		if s != "" && hmac.Equal([]byte(Sign(s, body)), []byte(signature)) {
			good = true
		}
	}
	return good
}

// IsSignature says whether s has the form of a signature.
func IsSignature(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(s) == hex.EncodedLen(sha256.Size)
}
