package httpapi

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"

	"tomato/domain"
)

// AuthConfig says which tokens are accepted. Secrets or JWKSURL must be set. If both
// are set, the token's algorithm decides which one is used.
type AuthConfig struct {
	Secrets  []string      // the keys of HS256: the first one signs, each of them verifies; none: no HS256
	JWKSURL  string        // where the keys of RS256 and ES256 are read; empty: neither
	Issuer   string        // if set, iss must be this
	Audience string        // if set, aud must contain this
	MaxTTL   time.Duration // tokens whose exp is further away are refused; 0: no limit

	Revocations Revocations           // nil: no token is revoked
	Registry    prometheus.Registerer // nil: no metrics
	Log         *slog.Logger          // nil: slog.Default()
}

// Revocations says whose tokens were revoked. It must be safe for concurrent use, and is
// asked for every request.
type Revocations interface {
	// RevokedUpTo returns the time up to which tokens of the subject were issued that are
	// refused, in whole seconds. ok is false if none are.
	RevokedUpTo(sub string) (upTo time.Time, ok bool)
}

const (
	maxTokenBytes   = 8 << 10
	maxCachedTokens = 1 << 14
	// A token is accepted for at most this long after its key was removed from the
	// key set.
	maxCachedFor = 5 * time.Minute
)

// Token is what a verified token says.
type Token struct {
	Actor    domain.Actor
	Expires  time.Time
	IssuedAt time.Time // in whole seconds; zero if the token does not say
}

// An Authenticator turns tokens into actors. It is safe for concurrent use.
//
// It caches verified tokens by their SHA-256, each for maxCachedFor at the longest and
// not beyond its exp. Whether a token is valid depends only on its bytes, its exp and
// the keys, and on the revocations, which are asked each time. So the only change that the
// cache hides for a while is the removal of a key from the key set. It holds
// maxCachedTokens at most. Refused tokens are not cached.
type Authenticator struct {
	parser  *jwt.Parser
	secrets jwt.VerificationKeySet
	jwks    *keySet // nil: no RS256 and no ES256
	maxTTL  time.Duration
	revoked Revocations

	mu    sync.RWMutex // guards cache
	cache map[[sha256.Size]byte]cachedToken
}

type cachedToken struct {
	Token
	until time.Time // the entry is used before this time; it is exp or earlier
}

// NewAuthenticator returns an Authenticator, and reads the key set if JWKSURL is set.
// If the key set cannot be read, that is not an error: it is read again later, and
// tokens that need it are answered with 503 until then. Close ends the reading. It fails if
// c has neither Secrets nor JWKSURL, or if CheckKeySetURL refuses JWKSURL.
func NewAuthenticator(c AuthConfig) (*Authenticator, error) {
	var algs []string
	if len(c.Secrets) > 0 {
		algs = append(algs, "HS256")
	}
	if c.JWKSURL != "" {
		algs = append(algs, "RS256", "ES256")
	}
	if algs == nil {
		return nil, errors.New("neither a JWT secret nor a JWKS URL is set")
	}
	opts := []jwt.ParserOption{jwt.WithValidMethods(algs), jwt.WithExpirationRequired()}
	if c.Issuer != "" {
		opts = append(opts, jwt.WithIssuer(c.Issuer))
	}
	if c.Audience != "" {
		opts = append(opts, jwt.WithAudience(c.Audience))
	}
	log := c.Log
	if log == nil {
		log = slog.Default()
	}
	a := &Authenticator{parser: jwt.NewParser(opts...), maxTTL: c.MaxTTL, revoked: c.Revocations, cache: make(map[[sha256.Size]byte]cachedToken)}
	for _, secret := range c.Secrets {
		a.secrets.Keys = append(a.secrets.Keys, []byte(secret))
	}
	if c.JWKSURL != "" {
		if err := CheckKeySetURL(c.JWKSURL); err != nil {
			return nil, err
		}
		a.jwks = newKeySet(c.JWKSURL, c.Registry, log)
	}
	return a, nil
}

// KeySetRead returns when the key set was last read, and the error of the last attempt. The
// time is zero if it was never read. Without JWKSURL there is nothing to read, and the error
// is nil.
func (a *Authenticator) KeySetRead() (at time.Time, err error) {
	if a.jwks == nil {
		return time.Now(), nil
	}
	return a.jwks.status()
}

// Close stops reading the key set.
func (a *Authenticator) Close() {
	if a.jwks != nil {
		a.jwks.close()
	}
}

type claims struct {
	Role         domain.Role `json:"role"`
	RestaurantID string      `json:"restaurantId,omitempty"`
	jwt.RegisteredClaims
}

// key returns the key for the token's algorithm. The parser has checked that the
// algorithm is one that is accepted. So the secret is never used for RS256, nor a
// public key as the secret of HS256.
func (a *Authenticator) key(t *jwt.Token) (any, error) {
	if t.Method == jwt.SigningMethodHS256 {
		return a.secrets, nil
	}
	return a.jwks.key(t)
}

// Authenticate verifies the token and returns what it says. Its error is a *Problem with
// status 401, or 503 if the key set cannot be read.
func (a *Authenticator) Authenticate(token string) (Token, error) {
	t, err := a.authenticate(token)
	if err == nil {
		err = a.Revoked(t)
	}
	if err != nil {
		return Token{}, err
	}
	return t, nil
}

// Revoked returns a *Problem with status 401 if the token was revoked after it was issued.
func (a *Authenticator) Revoked(t Token) error {
	if a.revoked == nil {
		return nil
	}
	if upTo, ok := a.revoked.RevokedUpTo(t.Actor.Sub); ok && !t.IssuedAt.After(upTo) {
		return unauthorized("invalid_token", "The token was revoked. A new one is needed.")
	}
	return nil
}

func (a *Authenticator) authenticate(token string) (Token, error) {
	if token == "" {
		return Token{}, unauthorized("", "A bearer token is needed.")
	}
	if len(token) > maxTokenBytes {
		return Token{}, unauthorized("invalid_token", "The token is too long.")
	}
	var array [1 << 10]byte // most tokens fit, so there is no allocation
	sum := sha256.Sum256(append(array[:0], token...))
	now := time.Now()
	a.mu.RLock()
	hit, ok := a.cache[sum]
	a.mu.RUnlock()
	if ok && now.Before(hit.until) {
		return hit.Token, nil
	}
	var c claims
	if _, err := a.parser.ParseWithClaims(token, &c, a.key); err != nil {
		if errors.Is(err, errKeysUnread) {
			return Token{}, Unavailable("unavailable", "The keys of tokens cannot be read now.", keySetRetryAfter)
		}
		return Token{}, unauthorized("invalid_token", whyInvalid(err))
	}
	actor := domain.Actor{Sub: c.Subject, Role: c.Role}
	switch c.Role {
	case domain.Customer, domain.Rider, domain.Ops, domain.Support:
	case domain.Restaurant:
		if !domain.ValidID(c.RestaurantID) {
			return Token{}, unauthorized("invalid_token", "A token of role restaurant needs a valid restaurantId.")
		}
		actor.RestaurantID = c.RestaurantID
	default:
		return Token{}, unauthorized("invalid_token", "The token's role is none of customer, restaurant, rider, ops, support.")
	}
	if !domain.ValidID(c.Subject) {
		return Token{}, unauthorized("invalid_token", "The token's sub is missing or no valid id.")
	}
	exp := c.ExpiresAt.Time
	if a.maxTTL > 0 && exp.Sub(now) > a.maxTTL {
		return Token{}, unauthorized("invalid_token", "The token is valid for too long. At most "+a.maxTTL.String()+" are accepted.")
	}
	t := Token{Actor: actor, Expires: exp}
	if c.IssuedAt != nil {
		t.IssuedAt = c.IssuedAt.Time
	}
	until := now.Add(maxCachedFor)
	if exp.Before(until) {
		until = exp
	}
	a.remember(sum, cachedToken{t, until}, now)
	return t, nil
}

// remember puts a verified token into the cache. If the cache is full, another token is
// removed.
func (a *Authenticator) remember(sum [sha256.Size]byte, t cachedToken, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.cache) >= maxCachedTokens {
		// It removes the first of eight tokens that is outdated, or else the eighth.
		looked := 0
		for k, old := range a.cache {
			if looked++; looked == 8 || !now.Before(old.until) {
				delete(a.cache, k)
				break
			}
		}
	}
	a.cache[sum] = t
}

// whyInvalid returns what the caller is told about an invalid token.
func whyInvalid(err error) string {
	switch {
	case errors.Is(err, jwt.ErrTokenExpired):
		return "The token has expired."
	case errors.Is(err, jwt.ErrTokenNotValidYet):
		return "The token is not valid yet."
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		return "The token lacks a required claim; exp is required."
	case errors.Is(err, jwt.ErrTokenInvalidIssuer):
		return "The token's issuer is another one."
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return "The token is for another audience."
	case errors.Is(err, jwt.ErrTokenMalformed):
		return "The token is not a JWT."
	}
	return "The token's signature or algorithm is not accepted."
}

func unauthorized(code, detail string) *Problem {
	challenge := `Bearer realm="tomato"`
	if code != "" {
		challenge += `, error="` + code + `", error_description="` + detail + `"`
	}
	return Unauthorized(challenge, detail)
}

// TokenFromRequest returns the bearer token of the header Authorization, or "".
func TokenFromRequest(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// subprotocolPrefix begins the websocket subprotocol that carries a token.
const subprotocolPrefix = "bearer."

// StreamToken returns the token of a request for a stream, whose client may be a browser
// that cannot set the header Authorization: it may be in the query parameter token, or in
// the subprotocol bearer.<token> of a websocket. The subprotocol is returned even if the
// token came another way, because a client that offers one fails the connection if none
// is chosen.
func StreamToken(r *http.Request) (token, subprotocol string) {
	token = cmp.Or(TokenFromRequest(r), r.URL.Query().Get("token"))
	for _, list := range r.Header.Values("Sec-WebSocket-Protocol") {
		for p := range strings.SplitSeq(list, ",") {
			p = strings.TrimSpace(p)
			if t, ok := strings.CutPrefix(p, subprotocolPrefix); ok {
				token, subprotocol = cmp.Or(token, t), p
			}
		}
	}
	return token, subprotocol
}

// MintToken returns a token for the actor, signed with HS256, that expires after ttl.
// It fails if secret is empty.
func MintToken(secret string, actor domain.Actor, ttl time.Duration) (string, error) {
	return AuthConfig{Secrets: []string{secret}}.MintToken(actor, ttl)
}

// MintToken returns a token for the actor, signed with the first of Secrets and HS256, that
// expires after ttl. An Authenticator with this config accepts it, unless ttl is more than
// MaxTTL. It fails without a secret.
func (c AuthConfig) MintToken(actor domain.Actor, ttl time.Duration) (string, error) {
	if len(c.Secrets) == 0 || c.Secrets[0] == "" {
		return "", errors.New("minting a token needs the JWT secret")
	}
	now := time.Now()
	t := claims{
		Role:         actor.Role,
		RestaurantID: actor.RestaurantID,
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer:    c.Issuer,
			Subject:   actor.Sub,
			IssuedAt:  jwt.NewNumericDate(now),
			ExpiresAt: jwt.NewNumericDate(now.Add(ttl)),
		},
	}
	if c.Audience != "" {
		t.Audience = jwt.ClaimStrings{c.Audience}
	}
	return jwt.NewWithClaims(jwt.SigningMethodHS256, t).SignedString([]byte(c.Secrets[0]))
}

type actorKey struct{}

// Actor returns the actor who makes the request. It is the zero Actor if the operation
// needs no token.
func Actor(ctx context.Context) domain.Actor {
	a, _ := ctx.Value(actorKey{}).(domain.Actor)
	return a
}

// WithActor returns a context from which Actor returns a. It is for requests that were
// authenticated in another way, such as forwarded ones.
func WithActor(ctx context.Context, a domain.Actor) context.Context {
	return context.WithValue(ctx, actorKey{}, a)
}
