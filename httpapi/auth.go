package httpapi

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/time/rate"

	"tomato/domain"
)

// AuthConfig says which tokens are good. At least one of Secret and JWKSURL is
// needed; with both, the token's algorithm chooses.
type AuthConfig struct {
	Secret   string // HS256; empty: no HS256
	JWKSURL  string // RS256 and ES256; empty: neither
	Issuer   string // if set, the only iss
	Audience string // if set, it must be among aud
	Log      *slog.Logger
}

const (
	maxTokenBytes   = 8 << 10
	maxCachedTokens = 1 << 14
	// A token stays good for this long after its key left the key set.
	maxCachedFor = 5 * time.Minute
	jwksRefresh  = 5 * time.Minute
	jwksTimeout  = 5 * time.Second
)

// An Authenticator turns tokens into actors. It is safe for concurrent use.
//
// A verified token is remembered by its SHA-256, for at most five minutes and
// not past exp: whether a token is good depends on its bytes, the clock against
// exp, and the keys, and nothing else; so only a key withdrawn from the key set
// is noticed late. At most 16,384 are held. Refused tokens are not remembered.
type Authenticator struct {
	parser *jwt.Parser
	secret []byte
	jwks   keyfunc.Keyfunc
	stop   context.CancelFunc

	mu    sync.RWMutex // guards cache
	cache map[[sha256.Size]byte]cachedToken
}

type cachedToken struct {
	actor domain.Actor
	exp   time.Time
	until time.Time // the entry's end: exp or earlier
}

// NewAuthenticator reads the key set, if there is one. A key set that cannot be
// read now is no error: it is read again later, and meanwhile its tokens are
// refused. Close ends the reading.
func NewAuthenticator(c AuthConfig) (*Authenticator, error) {
	var algs []string
	if c.Secret != "" {
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
	ctx, stop := context.WithCancel(context.Background())
	a := &Authenticator{parser: jwt.NewParser(opts...), secret: []byte(c.Secret), stop: stop, cache: make(map[[sha256.Size]byte]cachedToken)}
	if c.JWKSURL != "" {
		k, err := keyfunc.NewDefaultOverrideCtx(ctx, []string{c.JWKSURL}, keyfunc.Override{
			Client:          &http.Client{Timeout: jwksTimeout},
			HTTPTimeout:     jwksTimeout,
			RefreshInterval: jwksRefresh,
			// A token with an unknown key id makes us look for new keys, but
			// not more often than this, and its bearer never waits longer
			// than RateLimitWaitMax: else anybody could hold requests up.
			RefreshUnknownKID: rate.NewLimiter(rate.Every(30*time.Second), 1),
			RateLimitWaitMax:  2 * time.Second,
			RefreshErrorHandlerFunc: func(address string) func(context.Context, error) {
				return func(_ context.Context, err error) {
					log.Error("the JWT key set could not be read", "url", withoutPassword(address), "err", err)
				}
			},
		})
		if err != nil {
			stop()
			return nil, fmt.Errorf("JWKS URL: %w", err)
		}
		a.jwks = k
	}
	return a, nil
}

// withoutPassword is the URL as a log may show it.
func withoutPassword(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "not a URL"
	}
	return u.Redacted()
}

// Close stops following the key set.
func (a *Authenticator) Close() { a.stop() }

type claims struct {
	Role         domain.Role `json:"role"`
	RestaurantID string      `json:"restaurantId,omitempty"`
	jwt.RegisteredClaims
}

// key picks the key by the algorithm, which the parser has checked: the secret
// is never tried on RS256, nor a public key on HS256.
func (a *Authenticator) key(t *jwt.Token) (any, error) {
	if t.Method == jwt.SigningMethodHS256 {
		return a.secret, nil
	}
	return a.jwks.Keyfunc(t)
}

// Authenticate verifies the token and returns who bears it and until when. The
// error is a 401 *Problem.
func (a *Authenticator) Authenticate(token string) (domain.Actor, time.Time, error) {
	if token == "" {
		return domain.Actor{}, time.Time{}, unauthorized("", "A bearer token is needed.")
	}
	if len(token) > maxTokenBytes {
		return domain.Actor{}, time.Time{}, unauthorized("invalid_token", "The token is too long.")
	}
	var few [1 << 10]byte // most tokens: no allocation
	sum := sha256.Sum256(append(few[:0], token...))
	now := time.Now()
	a.mu.RLock()
	hit, ok := a.cache[sum]
	a.mu.RUnlock()
	if ok && now.Before(hit.until) {
		return hit.actor, hit.exp, nil
	}
	var c claims
	if _, err := a.parser.ParseWithClaims(token, &c, a.key); err != nil {
		return domain.Actor{}, time.Time{}, unauthorized("invalid_token", whyInvalid(err))
	}
	actor := domain.Actor{Sub: c.Subject, Role: c.Role}
	switch c.Role {
	case domain.Customer, domain.Rider, domain.Ops:
	case domain.Restaurant:
		if !domain.ValidID(c.RestaurantID) {
			return domain.Actor{}, time.Time{}, unauthorized("invalid_token", "A token of role restaurant needs a valid restaurantId.")
		}
		actor.RestaurantID = c.RestaurantID
	default:
		return domain.Actor{}, time.Time{}, unauthorized("invalid_token", "The token's role is none of customer, restaurant, rider, ops.")
	}
	if !domain.ValidID(c.Subject) {
		return domain.Actor{}, time.Time{}, unauthorized("invalid_token", "The token's sub is missing or no valid id.")
	}
	exp := c.ExpiresAt.Time
	until := now.Add(maxCachedFor)
	if exp.Before(until) {
		until = exp
	}
	a.remember(sum, cachedToken{actor, exp, until}, now)
	return actor, exp, nil
}

func (a *Authenticator) remember(sum [sha256.Size]byte, t cachedToken, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.cache) >= maxCachedTokens {
		// Room for one is enough; a look at a few finds a stale one soon, and
		// the last of them goes in any case.
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

// MintToken signs a token (HS256) for the actor that is good for ttl.
func MintToken(secret string, actor domain.Actor, ttl time.Duration) (string, error) {
	return AuthConfig{Secret: secret}.MintToken(actor, ttl)
}

// MintToken signs a token (HS256) that an Authenticator of this config takes.
func (c AuthConfig) MintToken(actor domain.Actor, ttl time.Duration) (string, error) {
	if c.Secret == "" {
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
	return jwt.NewWithClaims(jwt.SigningMethodHS256, t).SignedString([]byte(c.Secret))
}

type actorKey struct{}

// Actor is who makes the request: the zero Actor where no token is needed.
func Actor(ctx context.Context) domain.Actor {
	a, _ := ctx.Value(actorKey{}).(domain.Actor)
	return a
}

// WithActor returns a context that Actor reads the actor from: for requests
// that were authenticated otherwise, such as forwarded ones.
func WithActor(ctx context.Context, a domain.Actor) context.Context {
	return context.WithValue(ctx, actorKey{}, a)
}
