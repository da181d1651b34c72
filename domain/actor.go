package domain

// Role is the role of a caller. No caller has the zero value.
type Role string

// The roles. An access token has one of the first five (httpapi/auth.go). Support reads
// what Ops may read, without personal data, and issues no command. System is the role of
// policies and deadlines, and no access token has it.
const (
	Customer   Role = "customer"
	Restaurant Role = "restaurant"
	Rider      Role = "rider"
	Ops        Role = "ops"
	Support    Role = "support"
	System     Role = "system"
)

// Actor is the caller who issues a command or a query.
type Actor struct {
	Sub          string `json:"sub"`
	Role         Role   `json:"role"`
	RestaurantID string `json:"restaurantId,omitempty"` // set for role restaurant only
}

// SystemActor is the actor of policies and deadlines.
var SystemActor = Actor{Sub: "system", Role: System}
