package httpapi

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"tomato/domain"
)

// good returns the claims of a valid token, changed by kv. A nil value removes a claim.
func good(kv ...any) jwt.MapClaims {
	c := jwt.MapClaims{"sub": "c1", "role": "customer", "exp": time.Now().Add(time.Hour).Unix()}
	for i := 0; i < len(kv); i += 2 {
		if c[kv[i].(string)] = kv[i+1]; kv[i+1] == nil {
			delete(c, kv[i].(string))
		}
	}
	return c
}

func sign(t *testing.T, method jwt.SigningMethod, kid string, key any, c jwt.MapClaims) string {
	t.Helper()
	token := jwt.NewWithClaims(method, c)
	if kid != "" {
		token.Header["kid"] = kid
	}
	s, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func TestAuthenticate(t *testing.T) {
	t.Parallel()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	otherKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecPoint, err := ecKey.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": []any{
			map[string]any{"kty": "RSA", "kid": "r", "alg": "RS256", "use": "sig", "n": b64(rsaKey.N.Bytes()), "e": b64(big.NewInt(int64(rsaKey.E)).Bytes())},
			map[string]any{"kty": "EC", "kid": "e", "crv": "P-256", "x": b64(ecPoint[1:33]), "y": b64(ecPoint[33:])},
		}})
	}))
	t.Cleanup(keys.Close)

	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	authenticator := func(c AuthConfig) *Authenticator {
		c.Log = quiet
		a, err := NewAuthenticator(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(a.Close)
		return a
	}
	bySecret := authenticator(AuthConfig{Secrets: []string{secret}})
	byKeys := authenticator(AuthConfig{JWKSURL: keys.URL})
	both := authenticator(AuthConfig{Secrets: []string{secret}, JWKSURL: keys.URL})
	strict := authenticator(AuthConfig{Secrets: []string{secret}, Issuer: "us", Audience: "tomato"})

	der, err := x509.MarshalPKIXPublicKey(&rsaKey.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	hs := func(kv ...any) string { return sign(t, jwt.SigningMethodHS256, "", []byte(secret), good(kv...)) }
	customer := domain.Actor{Sub: "c1", Role: domain.Customer}
	nobody := domain.Actor{}
	tampered := hs()
	tampered = tampered[:strings.LastIndexByte(tampered, '.')] + hs("sub", "c2")[strings.LastIndexByte(hs("sub", "c2"), '.'):]

	for name, c := range map[string]struct {
		by    *Authenticator
		token string
		want  domain.Actor
	}{
		"customer":   {bySecret, hs(), customer},
		"rider":      {bySecret, hs("role", "rider"), domain.Actor{Sub: "c1", Role: domain.Rider}},
		"ops":        {bySecret, hs("role", "ops"), domain.Actor{Sub: "c1", Role: domain.Ops}},
		"restaurant": {bySecret, hs("role", "restaurant", "restaurantId", "r1"), domain.Actor{Sub: "c1", Role: domain.Restaurant, RestaurantID: "r1"}},
		"restaurantId of another role is not taken over": {bySecret, hs("restaurantId", "r1"), customer},
		"restaurant without id":                          {bySecret, hs("role", "restaurant"), nobody},
		"restaurant with a bad id":                       {bySecret, hs("role", "restaurant", "restaurantId", "a/b"), nobody},
		"system":                                         {bySecret, hs("role", "system"), nobody},
		"unknown role":                                   {bySecret, hs("role", "admin"), nobody},
		"no role":                                        {bySecret, hs("role", nil), nobody},
		"no sub":                                         {bySecret, hs("sub", nil), nobody},
		"bad sub":                                        {bySecret, hs("sub", "a b"), nobody},
		"long sub":                                       {bySecret, hs("sub", strings.Repeat("a", 65)), nobody},
		"no exp":                                         {bySecret, hs("exp", nil), nobody},
		"exp as text":                                    {bySecret, hs("exp", "tomorrow"), nobody},
		"expired":                                        {bySecret, hs("exp", time.Now().Add(-time.Second).Unix()), nobody},
		"not yet":                                        {bySecret, hs("nbf", time.Now().Add(time.Hour).Unix()), nobody},
		"forged":                                         {bySecret, sign(t, jwt.SigningMethodHS256, "", []byte("guess"), good()), nobody},
		"tampered":                                       {bySecret, tampered, nobody},
		"none":                                           {bySecret, sign(t, jwt.SigningMethodNone, "", jwt.UnsafeAllowNoneSignatureType, good()), nobody},
		"none, both":                                     {both, sign(t, jwt.SigningMethodNone, "", jwt.UnsafeAllowNoneSignatureType, good()), nobody},
		"HS384":                                          {bySecret, sign(t, jwt.SigningMethodHS384, "", []byte(secret), good()), nobody},
		"garbage":                                        {bySecret, "a.b.c", nobody},
		"empty":                                          {bySecret, "", nobody},
		"long":                                           {bySecret, strings.Repeat("a", maxTokenBytes+1), nobody},
		"RS256":                                          {byKeys, sign(t, jwt.SigningMethodRS256, "r", rsaKey, good()), customer},
		"RS256 without kid":                              {byKeys, sign(t, jwt.SigningMethodRS256, "", rsaKey, good()), customer},
		"ES256":                                          {byKeys, sign(t, jwt.SigningMethodES256, "e", ecKey, good()), customer},
		"RS256 of another key":                           {byKeys, sign(t, jwt.SigningMethodRS256, "r", otherKey, good()), nobody},
		"unknown kid":                                    {byKeys, sign(t, jwt.SigningMethodRS256, "x", rsaKey, good()), nobody},
		"PS256":                                          {byKeys, sign(t, jwt.SigningMethodPS256, "r", rsaKey, good()), nobody},
		"ES256 under the RSA kid":                        {byKeys, sign(t, jwt.SigningMethodES256, "r", ecKey, good()), nobody},
		"HS256 by keys":                                  {byKeys, hs(), nobody},
		"HS256 with the public key":                      {byKeys, sign(t, jwt.SigningMethodHS256, "r", public, good()), nobody},
		"HS256 with the public key, both":                {both, sign(t, jwt.SigningMethodHS256, "r", public, good()), nobody},
		"RS256, both":                                    {both, sign(t, jwt.SigningMethodRS256, "r", rsaKey, good()), customer},
		"HS256, both":                                    {both, hs(), customer},
		"RS256 by secret":                                {bySecret, sign(t, jwt.SigningMethodRS256, "r", rsaKey, good()), nobody},
		"issuer and audience":                            {strict, hs("iss", "us", "aud", []string{"x", "tomato"}), customer},
		"other issuer":                                   {strict, hs("iss", "them", "aud", "tomato"), nobody},
		"other audience":                                 {strict, hs("iss", "us", "aud", "potato"), nobody},
		"neither issuer nor audience":                    {strict, hs(), nobody},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for range 2 { // the second answer may come from the cache
				token, err := c.by.Authenticate(c.token)
				got, exp := token.Actor, token.Expires
				if got != c.want || (err == nil) != (c.want != nobody) {
					t.Fatalf("%+v %v", got, err)
				}
				if err == nil && time.Until(exp) < 50*time.Minute {
					t.Errorf("exp: %v", exp)
				}
				var p *Problem
				if err != nil && (!errors.As(err, &p) || p.Status != 401 || p.challenge == "") {
					t.Errorf("%#v", err)
				}
			}
		})
	}
}

// A cached token is refused after its exp.
func TestRememberedTokenExpires(t *testing.T) {
	t.Parallel()
	a, err := NewAuthenticator(AuthConfig{Secrets: []string{secret}})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	token := sign(t, jwt.SigningMethodHS256, "", []byte(secret), good("exp", time.Now().Add(2*time.Second).Unix()))
	if _, err := a.Authenticate(token); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case <-tick.C:
			if _, err := a.Authenticate(token); err != nil {
				return
			}
		case <-deadline:
			t.Fatal("an expired token is still taken")
		}
	}
}

func TestRememberedTokensAreBounded(t *testing.T) {
	t.Parallel()
	a, err := NewAuthenticator(AuthConfig{Secrets: []string{secret}})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for i := range maxCachedTokens + 100 {
		token := mint(t, domain.Actor{Sub: "c" + strconv.Itoa(i), Role: domain.Customer})
		if _, err := a.Authenticate(token); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.cache) > maxCachedTokens {
		t.Errorf("%d tokens", len(a.cache))
	}
}

func TestAuthenticatorNeedsKeys(t *testing.T) {
	t.Parallel()
	if _, err := NewAuthenticator(AuthConfig{}); err == nil {
		t.Error("no secret and no keys were taken")
	}
	if _, err := MintToken("", domain.Actor{Sub: "a", Role: domain.Ops}, time.Hour); err == nil {
		t.Error("a token was signed with nothing")
	}
}
