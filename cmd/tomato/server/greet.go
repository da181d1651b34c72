package server

import (
	"fmt"
	"io"
	"strings"
	"time"

	"tomato/cmd/tomato/settings"
	"tomato/domain"
	"tomato/httpapi"
)

// Greet prints where the server is reached, whether a read model has to be rebuilt, and
// tokens to try it out. It prints tokens
// only if the secret that signs them was made up, so that nobody else knows it.
func (s *Server) Greet(out io.Writer) {
	fmt.Fprintf(out, "tomato %s serves %s at %s\n", settings.Build(), strings.Join(s.config.Role, ", "), s.url)
	if advice := s.models.RebuildAdvice(); advice != "" {
		fmt.Fprintln(out, "a rebuild is due:", advice)
	}
	if !s.made.JWT { // a token that a chosen secret has signed must never be printed
		return
	}
	fmt.Fprintln(out, "development tokens, valid for 24 hours:")
	for _, a := range []domain.Actor{{Sub: "ops1", Role: domain.Ops}, {Sub: "staff1", Role: domain.Restaurant, RestaurantID: "rest1"},
		{Sub: "rider1", Role: domain.Rider}, {Sub: "cust1", Role: domain.Customer}} {
		token, err := httpapi.AuthConfig{Secrets: s.config.JWT(), Issuer: s.config.JWTIssuer, Audience: s.config.JWTAudience}.MintToken(a, 24*time.Hour)
		if err != nil {
			return
		}
		fmt.Fprintf(out, "  %s=%s\n", strings.ToUpper(string(a.Role)), token)
	}
}
