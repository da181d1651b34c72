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

// Greet tells a newcomer where the server is, and how to get in. It shows tokens only
// if the secret that signs them was made up: nobody else knows it.
func (s *Server) Greet(out io.Writer) {
	fmt.Fprintf(out, "tomato %s serves %s at %s\n", settings.Build(), strings.Join(s.config.Role, ", "), s.url)
	if !s.made.JWT { // tokens are never shown that a chosen secret has signed
		return
	}
	fmt.Fprintln(out, "development tokens, valid for 24 hours:")
	for _, a := range []domain.Actor{{Sub: "ops1", Role: domain.Ops}, {Sub: "staff1", Role: domain.Restaurant, RestaurantID: "rest1"},
		{Sub: "rider1", Role: domain.Rider}, {Sub: "cust1", Role: domain.Customer}} {
		token, err := httpapi.AuthConfig{Secret: s.config.JWTSecret, Issuer: s.config.JWTIssuer, Audience: s.config.JWTAudience}.MintToken(a, 24*time.Hour)
		if err != nil {
			return
		}
		fmt.Fprintf(out, "  %s=%s\n", strings.ToUpper(string(a.Role)), token)
	}
}
