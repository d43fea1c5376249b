package scope_test

import (
	"fmt"
	"net/url"

	"github.com/taskcred/taskcred/scope"
)

func ExampleNewTool() {
	refund, err := scope.NewTool(scope.Spec{
		Name:        "payments.refund",
		Endpoint:    "https://pay.example.com/v1/refunds",
		Methods:     []string{"POST"},
		Permissions: []string{"refunds:create"},
	})
	fmt.Println(refund, err)

	_, err = scope.NewTool(scope.Spec{Name: "weather", Endpoint: "http://weather.example.com", Methods: []string{"GET"}})
	fmt.Println(err)
	// Output:
	// tool payments.refund <nil>
	// scope: Spec.Endpoint "http://weather.example.com": is http to a host that is not loopback, where anybody on the way reads the credential; use https
}

func ExampleAny_Covers() {
	refund, err := scope.NewTool(scope.Spec{
		Name: "payments.refund", Endpoint: "https://pay.example.com/v1/refunds", Methods: []string{"POST"},
	})
	if err != nil {
		panic(err)
	}
	for _, s := range []string{
		"https://pay.example.com/v1/refunds/42",
		"https://pay.example.com.evil.test/v1/refunds",
		"https://pay.example.com/v1/refunds/../payouts",
	} {
		u, err := url.Parse(s)
		if err != nil {
			panic(err)
		}
		fmt.Println(refund.Covers("POST", u))
	}
	// Output:
	// <nil>
	// scope: payments.refund: host "pay.example.com.evil.test" is not "pay.example.com"
	// scope: payments.refund: the path has a dot segment
}

func ExampleAny_Narrow() {
	orders, err := scope.NewTool(scope.Spec{
		Name: "orders", Endpoint: "https://shop.example.com/orders",
		Methods: []string{"GET", "POST"}, Permissions: []string{"orders:read", "orders:write"},
	})
	if err != nil {
		panic(err)
	}
	look, err := orders.Narrow(scope.Spec{Methods: []string{"GET"}, Permissions: []string{"orders:read"}})
	fmt.Println(orders.Any().Includes(look.Any()), look.Any().Includes(orders.Any()), err)

	_, err = look.Narrow(scope.Spec{Methods: []string{"POST"}})
	fmt.Println(err)
	// Output:
	// true false <nil>
	// scope: Spec.Methods is not within that of tool orders; a narrower scope may only take away
}
