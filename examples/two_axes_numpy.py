"""The two axes of a multi-task loss in plain numpy: four cells, one identity.

    L = sum_i lambda_i * mean_j loss_ij

The outer axis chooses lambda (equal, or from gradient norms as GABA does), the inner axis the loss of a sample (squared
error, or squared error that counts up to twice near failure). For given lambdas the total is bilinear in the two choices.
"""

from __future__ import annotations

import numpy as np

RUL = np.array([10.0, 30.0, 60.0, 90.0, 110.0, 5.0, 15.0, 80.0])  # remaining useful life, cycles
RUL_HAT = np.array([15.0, 26.0, 68.0, 87.0, 112.0, -7.0, 24.0, 74.0])
L_HEALTH = 0.6069  # cross-entropy of the health state on the same batch, nats
NORMS = np.array([26.4016, 0.037833])  # gradient norms on the shared parameters: rul, health
R_MAX = 125.0  # cycles from which on a sample is not emphasised


def cells() -> dict[str, float]:
    """Return the losses, weights and totals of the four cells."""
    squared = (RUL_HAT - RUL) ** 2
    emphasis = 1 + np.clip(1 - RUL / R_MAX, 0, 1)
    mse = float(squared.mean())
    # The weights do not enter the denominator: a sample at failure counts twice, the others do not count less.
    wmse = float((emphasis * squared).mean())
    # Inverse norms on the simplex; for two tasks (S - g_i) / S is the other task's share.
    lambda_rul, lambda_health = (NORMS.sum() - NORMS) / NORMS.sum()
    return {
        "L_MSE": mse,
        "L_WMSE": wmse,
        "lambda_rul": float(lambda_rul),
        "lambda_health": float(lambda_health),
        "A": 0.5 * mse + 0.5 * L_HEALTH,
        "B": 0.5 * wmse + 0.5 * L_HEALTH,
        "C": float(lambda_rul) * mse + float(lambda_health) * L_HEALTH,
        "D": float(lambda_rul) * wmse + float(lambda_health) * L_HEALTH,
    }


def table(values: dict[str, float]) -> str:
    """Return the numbers as the lines that both examples print."""
    left = (values["D"] - values["C"]) - (values["B"] - values["A"])
    right = (values["lambda_rul"] - 0.5) * (values["L_WMSE"] - values["L_MSE"])
    return "\n".join(
        [
            f"L_MSE   {values['L_MSE']:.4f}    L_WMSE  {values['L_WMSE']:.4f}",
            f"lambda  ({values['lambda_rul']:.6f}, {values['lambda_health']:.6f})",
            "",
            "                     mse       failure-biased",
            f"equal weights      A {values['A']:8.4f}   B {values['B']:8.4f}",
            f"gradient norms     C {values['C']:8.4f}   D {values['D']:8.4f}",
            "",
            f"(L_D - L_C) - (L_B - L_A)            = {left:.4f}",
            f"(lambda_rul - 0.5)(L_WMSE - L_MSE)   = {right:.4f}",
        ]
    )


if __name__ == "__main__":
    print(table(cells()))
