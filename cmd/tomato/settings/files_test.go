package settings

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// command has a flag of each kind of secret.
type command struct {
	Kafka
	Database
	Secrets
	Other string `env:"TOMATO_OTHER"`
}

func parse(t *testing.T, args ...string) (c command, err error) {
	t.Helper()
	parser, err := kong.New(&c, SecretFiles())
	if err != nil {
		t.Fatal(err)
	}
	_, err = parser.Parse(args)
	return c, err
}

// A secret may be in a file, whose name is in the variable with _FILE behind it. A file that
// cannot be read, or is empty, is an error and not an empty secret.
func TestSecretsAreReadFromFiles(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Setenv("TOMATO_JWT_SECRET_FILE", file("jwt", "with, a comma\n"))
	t.Setenv("TOMATO_CLUSTER_KEYS_FILE", file("cluster", "new\nold\n"))
	t.Setenv("TOMATO_INTERNAL_KEYS_FILE", file("internal", "new, old"))
	t.Setenv("TOMATO_MASTER_KEY_FILE", file("master", "\nm1\r\nderived\r\n"))
	t.Setenv("TOMATO_RAZORPAY_WEBHOOK_SECRETS_FILE", file("webhook", "w"))
	t.Setenv("KAFKA_SASL_PASSWORD_FILE", file("sasl", "p"))
	t.Setenv("DATABASE_URL_FILE", file("database", "postgres://u:p@h/d\n"))
	t.Setenv("TOMATO_OTHER_FILE", file("other", "no secret"))
	c, err := parse(t)
	if err != nil {
		t.Fatal(err)
	}
	if c.JWTSecret != "with, a comma" || !slices.Equal(c.ClusterKeys, []string{"new", "old"}) || !slices.Equal(c.InternalKeys, []string{"new", "old"}) ||
		!slices.Equal(c.MasterKeys, []string{"m1", "derived"}) || !slices.Equal(c.WebhookSecrets, []string{"w"}) || c.SASLPassword != "p" || c.DatabaseURL != "postgres://u:p@h/d" || c.Other != "" {
		t.Errorf("%+v", c)
	}
	if c, err := parse(t, "--jwt-secret", "flag"); err != nil || c.JWTSecret != "flag" {
		t.Errorf("a flag beside a file: %q, %v", c.JWTSecret, err)
	}
	for what, change := range map[string]func(){
		"TOMATO_JWT_SECRET and TOMATO_JWT_SECRET_FILE": func() { t.Setenv("TOMATO_JWT_SECRET", "hunter2") },
		"is empty":                 func() { t.Setenv("TOMATO_CLUSTER_KEYS_FILE", file("empty", " \n")) },
		"KAFKA_SASL_PASSWORD_FILE": func() { t.Setenv("KAFKA_SASL_PASSWORD_FILE", filepath.Join(dir, "none")) },
	} {
		old := map[string]string{}
		for _, name := range []string{"TOMATO_JWT_SECRET", "TOMATO_CLUSTER_KEYS_FILE", "KAFKA_SASL_PASSWORD_FILE"} {
			old[name] = os.Getenv(name)
		}
		change()
		if _, err := parse(t); err == nil || !strings.Contains(err.Error(), what) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", what, err)
		}
		for name, value := range old {
			t.Setenv(name, value)
		}
	}
}

// Secrets among the arguments are moved to the environment, and nothing else is.
func TestSecretsAmongTheArgumentsAreHidden(t *testing.T) {
	t.Parallel()
	parser, err := kong.New(&struct {
		Serve command `cmd:""`
		Other struct {
			Args []string `arg:"" optional:""`
		} `cmd:""`
	}{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args, rest string
		variables  map[string]string
	}{
		{"serve --other x --kafka-brokers b:1", "serve --other x --kafka-brokers b:1", nil},
		{"serve --jwt-secret a --other x --database-url=postgres://u:p@h/d --cluster-keys new,old", "serve --other x",
			map[string]string{"TOMATO_JWT_SECRET": "a", "DATABASE_URL": "postgres://u:p@h/d", "TOMATO_CLUSTER_KEYS": "new,old"}},
		{"serve --kafka-sasl-password a --kafka-sasl-password b", "serve", map[string]string{"KAFKA_SASL_PASSWORD": "b"}},
		{"serve --internal-key", "serve --internal-key", nil},
		{"other -- --internal-key a", "other -- --internal-key a", nil},
	} {
		rest, variables := hidden(parser.Model.Node, strings.Fields(c.args))
		if strings.Join(rest, " ") != c.rest || !maps.Equal(variables, c.variables) {
			t.Errorf("%s: %q %v", c.args, rest, variables)
		}
	}
}
